"""Who is next: the order in which workers claim, and the place in it that a user sees."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from limbeck.errors import QueueFull
from models.attempt import Attempt
from models.job import HELD, Job, JobStatus

#: So many of the last jobs tell how long the next will take, and with fewer than the least nothing is said.
_PACE_OF_LAST = 50
_PACE_OF_LEAST = 3

#: More than can be put into the queue at the same time, unseen by each other: as long as there is room for them all,
#: nobody waits for anybody.
_AT_ONCE = 1000
#: Any number, the same in every Limbeck.
_COUNTING = 7_105_113_911


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the queue moves, as measured on the jobs that ended last."""

    quick: float  #: seconds: a quarter of those jobs took less
    slow: float  #: seconds: a quarter of those jobs took more
    side_by_side: int  #: jobs that workers hold now, at least 1

    def starts_in(self, position: int) -> tuple[float, float]:
        """The range of seconds in which the job at this place, counted from 1, begins."""
        return self.quick * ((position - 1) // self.side_by_side), self.slow * ceil(position / self.side_by_side)


def pace(session: Session) -> Pace | None:
    """The present pace; None before enough jobs have succeeded."""
    last = select(Job.id).where(Job.status == JobStatus.SUCCEEDED).order_by(Job.created_at.desc()).limit(_PACE_OF_LAST)
    # What its attempts took: between them a job may have been paused for a week.
    took: dict[str, float] = {}
    attempts = select(Attempt.job_id, Attempt.started_at, Attempt.ended_at).where(Attempt.job_id.in_(last))
    for job_id, start, end in session.execute(attempts):
        if end is not None:
            # Less than nothing where the database's clock was set back meanwhile.
            took[job_id] = took.get(job_id, 0.0) + max(0.0, (end - start).total_seconds())
    seconds = sorted(took.values())
    if len(seconds) < _PACE_OF_LEAST:
        return None
    held = session.scalar(select(func.count()).select_from(Job).where(Job.status.in_(HELD))) or 0
    quarter = len(seconds) // 4
    return Pace(seconds[quarter], seconds[-1 - quarter], max(1, held))


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


def require_room(session: Session, most: int) -> None:
    """Refuse what was just put into the queue, in the same transaction, where more wait now than may.

    Raises:
        QueueFull
    """
    if _waiting(session) <= most - _AT_ONCE:
        return
    if session.get_bind().dialect.name == "postgresql":
        # One counts at a time, until its commit: the next one sees it. SQLite has one writer at a time anyway.
        session.execute(select(func.pg_advisory_xact_lock(_COUNTING)))
    if _waiting(session) > most:
        raise QueueFull(f"{most} jobs wait already, which is as many as may; nothing was changed.")


def _waiting(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Job).where(Job.status == JobStatus.QUEUED)) or 0


def _before(session: Session, job: Job) -> ColumnElement[bool]:
    # Clients ask this often, and few owners have jobs running: fetched once, their counts cost less than once per row.
    counting = select(Job.owner, func.count()).where(Job.status.in_(HELD)).group_by(Job.owner)
    counts: dict[str, int] = dict(session.execute(counting).all())
    mine = counts.get(job.owner, 0)
    held: ColumnElement[int] = case(counts, value=Job.owner, else_=0) if counts else literal(0)
    older = or_(Job.created_at < job.created_at, and_(Job.created_at == job.created_at, Job.id < job.id))
    fairer = or_(held < mine, and_(held == mine, older))
    return or_(Job.priority > job.priority, and_(Job.priority == job.priority, fairer))
