"""Lists a page at a time, newest first, by a cursor that stays right while rows come and go."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, literal, tuple_
from sqlalchemy.orm import Session

from limbeck.errors import InvalidInput, Problem
from models.base import UtcMillis

_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows, and where to go on."""

    items: Sequence[Row]
    next_cursor: str | None  #: None on the last page

    @property
    def has_more(self) -> bool:
        return self.next_cursor is not None


def fetch(session: Session, query: Select[Row], table: Any, *, limit: int, cursor: str | None) -> Page[Row]:
    """The rows of ``query`` after ``cursor``, at most ``limit``; ``table`` has ``created_at`` and ``id``.

    Raises:
        InvalidInput: the cursor is not one of ours.
    """
    if cursor is not None:
        created_at, row_id = _read(cursor)
        query = query.where(
            tuple_(table.created_at, table.id) < tuple_(literal(created_at, UtcMillis()), literal(row_id))
        )
    rows: list[Any] = list(session.scalars(query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)))
    more = len(rows) > limit
    items = rows[:limit]
    return Page(items, _write(items[-1].created_at, items[-1].id) if more and items else None)


def _write(created_at: datetime, row_id: str) -> str:
    plain = f"{(created_at - _EPOCH) // _MILLISECOND}/{row_id}"
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def _read(cursor: str) -> tuple[datetime, str]:
    try:
        plain = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        millis, row_id = plain.split("/", 1)
        if "\0" in row_id:
            raise ValueError("PostgreSQL takes no such text")
        return _EPOCH + int(millis) * _MILLISECOND, row_id
    except (ValueError, OverflowError, binascii.Error) as error:
        detail = f"found {cursor[:80]!r}; allowed: the next_cursor of an earlier page of this list"
        raise InvalidInput(f"cursor: {detail}", [Problem("/cursor", detail)]) from error
