"""Which of the things that running jobs offer to other workers still stand, and which of them are free."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from models.base import db_now
from models.job import Job, JobStatus
from models.offered import Offered


def stands(table: type[Offered], statuses: Collection[JobStatus] = (JobStatus.RUNNING,)) -> ColumnElement[bool]:
    """The attempt that offers it goes on, and its job has one of these statuses."""
    return exists(
        select(Job.id).where(
            Job.id == table.job_id,
            Job.fence == table.fence,
            Job.status.in_(statuses),
            Job.lease_expires_at > db_now(),
        )
    )


def free(table: type[Offered]) -> ColumnElement[bool]:
    """Nobody is at it, or whoever was has let the lease run out."""
    return or_(table.worker.is_(None), table.lease_expires_at <= db_now())


def count(session: Session, table: type[Offered]) -> dict[str, int]:
    """How many that stand are ``free`` and how many ``held``."""
    found = {
        "free": select(func.count()).select_from(table).where(stands(table), free(table)),
        "held": select(func.count()).select_from(table).where(stands(table), ~free(table)),
    }
    return {state: session.scalar(query) or 0 for state, query in found.items()}


def withdraw(session: Session, table: type[Offered], job_id: str) -> None:
    """The job offers nothing of this kind any more."""
    query = delete(table).where(table.job_id == job_id)
    session.execute(query.execution_options(synchronize_session=False))
