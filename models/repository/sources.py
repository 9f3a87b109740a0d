"""The data sets and models of this service that a job's config names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from limbeck.errors import InvalidInput, Problem
from models.dataset import Dataset
from models.job import TERMINAL, Job
from models.model import Model

#: Parts of a config whose ``source`` may be one of the service's models.
MODEL_FIELDS = ("teacher", "student")


def hold(session: Session, config: Mapping[str, Any]) -> None:
    """Make sure that they are there, and stay until the transaction ends.

    Raises:
        InvalidInput: one is not.
    """
    for field in MODEL_FIELDS:
        _hold(session, config, field=field, prefix="model:", table=Model)
    _hold(session, config, field="dataset", prefix="dataset:", table=Dataset)


def users(session: Session, *, fields: Sequence[str], reference: str) -> list[str]:
    """Ids of the jobs that have not ended and whose config names ``reference`` as one of its ``fields``."""
    named = or_(*(Job.config[(field, "source")].as_string() == reference for field in fields))
    return list(
        session.scalars(select(Job.id).where(Job.status.not_in(TERMINAL), named).order_by(Job.created_at, Job.id))
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
