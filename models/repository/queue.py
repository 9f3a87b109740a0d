"""Who is next: the order in which workers claim, and the place in it that a user sees."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from models.job import HELD, Job, JobStatus


def held_by_owner() -> ColumnElement[int]:
    """How many of the same owner's jobs a worker holds now."""
    other = aliased(Job)
    return (
        select(func.count())
        .select_from(other)
        .where(other.owner == Job.owner, other.status.in_(HELD))
        .correlate(Job)
        .scalar_subquery()
    )


def claim_order() -> tuple[ColumnElement[Any], ...]:
    """``ORDER BY``: priority, then the owner that has the fewest jobs running, then age."""
    return (Job.priority.desc(), held_by_owner().asc(), Job.created_at.asc(), Job.id.asc())


def queue_position(session: Session, job: Job) -> int | None:
    """How many queued jobs :func:`claim_order` puts before this one, plus one; None where it does not wait.

    Which of them a worker can serve, and how the order among owners shifts as jobs begin and end, is left out.
    """
    if job.status is not JobStatus.QUEUED:
        return None
    ahead = select(func.count()).select_from(Job).where(Job.status == JobStatus.QUEUED, _before(session, job))
    return (session.scalar(ahead) or 0) + 1


def _before(session: Session, job: Job) -> ColumnElement[bool]:
    # Clients ask this often, and few owners have jobs running: fetched once, their counts cost less than once per row.
    counting = select(Job.owner, func.count()).where(Job.status.in_(HELD)).group_by(Job.owner)
    counts: dict[str, int] = dict(session.execute(counting).all())
    mine = counts.get(job.owner, 0)
    held: ColumnElement[int] = case(counts, value=Job.owner, else_=0) if counts else literal(0)
    older = or_(Job.created_at < job.created_at, and_(Job.created_at == job.created_at, Job.id < job.id))
    fairer = or_(held < mine, and_(held == mine, older))
    return or_(Job.priority > job.priority, and_(Job.priority == job.priority, fairer))
