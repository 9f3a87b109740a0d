"""Small answers about many jobs, for those who ask often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.job import Job, JobStatus
from models.repository.queue import claim_order


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


def queue_positions(session: Session) -> dict[str, int]:
    """Every queued job's place, for lists; see also ``queue.queue_position``."""
    ids = session.scalars(select(Job.id).where(Job.status == JobStatus.QUEUED).order_by(*claim_order()))
    return {job_id: place for place, job_id in enumerate(ids, start=1)}


def knows_key(session: Session, idempotency_key: str) -> bool:
    """Whether a request with this key has made a job before."""
    return session.scalar(select(Job.id).where(Job.idempotency_key == idempotency_key)) is not None
