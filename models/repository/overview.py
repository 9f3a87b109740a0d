"""Small answers about many jobs, for those who ask often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, and_, case, func, select, type_coerce
from sqlalchemy.orm import Session

from models.attempt import Attempt
from models.base import db_now
from models.event import Event
from models.job import HELD, Job, JobStatus
from models.present_worker import PresentWorker
from models.repository.queue import claim_order

_LATELY = 3600  # seconds


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job stands, without what never changes."""

    id: str
    status: JobStatus
    stage: str | None
    attempt: int
    progress: dict[str, Any] | None
    last_event: int


def job_states(session: Session, job_ids: Sequence[str]) -> list[JobState]:
    """The states of those that exist."""
    query = select(Job.id, Job.status, Job.stage, Job.attempt, Job.progress, Job.last_event)
    return [JobState(*row) for row in session.execute(query.where(Job.id.in_(job_ids)))]


def count_by_status(session: Session) -> dict[JobStatus, int]:
    """How many jobs are in each state, also where there are none."""
    counts = dict.fromkeys(JobStatus, 0)
    for status, count in session.execute(select(Job.status, func.count()).group_by(Job.status)):
        counts[status] = count
    return counts


def longest_wait(session: Session) -> float:
    """Seconds since when the job that waits the longest could have begun; 0 where none waits, or only for a retry."""
    # Nothing is told of a job while it waits: its last event is that it came into the queue. It may have to wait then.
    since = case((Job.lease_expires_at > Event.at, Job.lease_expires_at), else_=Event.at)
    last = and_(Event.job_id == Job.id, Event.sequence == Job.last_event)
    query = select(_now() - func.min(type_coerce(since, BigInteger))).join(Event, last)
    return max(0, session.scalar(query.where(Job.status == JobStatus.QUEUED)) or 0) / 1000


def count_overdue(session: Session) -> int:
    """How many jobs are held by workers that have let their leases run out: nobody has taken them over yet."""
    overdue = (Job.status.in_(HELD), Job.lease_expires_at <= db_now())
    return session.scalar(select(func.count()).select_from(Job).where(*overdue)) or 0


def count_by_worker(session: Session) -> dict[str, int]:
    """How many jobs each worker that is connected holds."""
    mine = and_(Job.worker == PresentWorker.id, Job.status.in_(HELD))
    query = select(PresentWorker.id, func.count(Job.id)).outerjoin(Job, mine).group_by(PresentWorker.id)
    return {worker: count for worker, count in session.execute(query.where(PresentWorker.expires_at > db_now()))}


def count_ended_attempts(session: Session) -> dict[str, int]:
    """How many attempts ended in the last hour, by their outcome."""
    query = select(Attempt.outcome, func.count()).group_by(Attempt.outcome)
    lately = type_coerce(Attempt.ended_at, BigInteger) > _now() - _LATELY * 1000
    return {outcome or "": count for outcome, count in session.execute(query.where(lately))}


def queue_positions(session: Session) -> dict[str, int]:
    """Every queued job's place, for lists; see also ``queue.queue_position``."""
    ids = session.scalars(select(Job.id).where(Job.status == JobStatus.QUEUED).order_by(*claim_order()))
    return {job_id: place for place, job_id in enumerate(ids, start=1)}


def knows_key(session: Session, idempotency_key: str) -> bool:
    """Whether a request with this key has made a job before."""
    return session.scalar(select(Job.id).where(Job.idempotency_key == idempotency_key)) is not None


def _now() -> ColumnElement[int]:
    """Milliseconds, by the database's clock."""
    return type_coerce(db_now(), BigInteger)
