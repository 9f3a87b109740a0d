"""The data sets and models of this service that a job's config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from limbeck.errors import InvalidInput, Problem
from models.dataset import Dataset
from models.job import TERMINAL, Job
from models.model import Model


def hold(session: Session, config: Mapping[str, Any]) -> None:
    """Make sure that they are there, and stay until the transaction ends.

    Raises:
        InvalidInput: one is not.
    """
    _hold(session, config, field="teacher", prefix="model:", table=Model)
    _hold(session, config, field="dataset", prefix="dataset:", table=Dataset)


def users(session: Session, *, field: str, reference: str) -> list[str]:
    """Ids of the jobs that have not ended and whose config names ``reference`` as its ``field``."""
    return list(
        session.scalars(
            select(Job.id)
            .where(Job.status.not_in(TERMINAL), Job.config[(field, "source")].as_string() == reference)
            .order_by(Job.created_at, Job.id)
        )
    )


def _hold(session: Session, config: Mapping[str, Any], *, field: str, prefix: str, table: Any) -> None:
    source = (config.get(field) or {}).get("source") or ""
    if not source.startswith(prefix):
        return
    wanted = source.removeprefix(prefix)
    found = session.scalar(select(table.id).where(table.id == wanted).with_for_update(read=True))
    if found is None:
        detail = f"found {source!r}, which does not exist or has been deleted"
        raise InvalidInput(f"/{field}/source: {detail}", [Problem(f"/{field}/source", detail)])
