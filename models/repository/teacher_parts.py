"""Which of the parts that jobs offer still stand, and which of them are free."""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from models.base import db_now
from models.job import Job, JobStatus
from models.part import TeacherPart


def stands() -> ColumnElement[bool]:
    """The attempt that offers the part goes on."""
    return exists(
        select(Job.id).where(
            Job.id == TeacherPart.job_id,
            Job.fence == TeacherPart.fence,
            Job.status == JobStatus.RUNNING,
            Job.lease_expires_at > db_now(),
        )
    )


def free() -> ColumnElement[bool]:
    """Nobody is at it, or whoever was has let the lease run out."""
    return or_(TeacherPart.worker.is_(None), TeacherPart.lease_expires_at <= db_now())


def count(session: Session) -> dict[str, int]:
    """How many parts that stand are ``free`` and how many ``held``."""
    found = {
        "free": select(func.count()).select_from(TeacherPart).where(stands(), free()),
        "held": select(func.count()).select_from(TeacherPart).where(stands(), ~free()),
    }
    return {state: session.scalar(query) or 0 for state, query in found.items()}
