"""What the end of an attempt does to its job's rows; and jobs that dead workers left behind, whose attempts whoever
asks may end: a worker that looks around, or the API where no worker is there at all.

Who calls one of these owns the job: by a guarded write under its fence, or as its lease has run out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from models.base import db_now
from models.host_place import HostPlace
from models.job import HELD, Job, JobStatus
from models.part import TeacherPart
from models.repository import telemetry
from models.repository.offered import withdraw
from models.text import storable

WORKER_LOST = "worker_lost"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt could not go on."""

    code: str
    message: str
    retryable: bool

    def as_error(self) -> dict[str, Any]:
        return {"code": self.code, "message": storable(self.message), "retryable": self.retryable}


def some_left_behind(session: Session) -> bool:
    """Whether there is anything for :func:`settle_left_behind`; reads only."""
    return session.scalar(select(Job.id).where(_left_behind()).limit(1)) is not None


def settle_left_behind(session: Session, job_id: str | None = None) -> list[Job]:
    """End what workers let go of and nobody may claim: jobs to cancel, jobs to pause, jobs without an attempt left.

    Args:
        job_id: this job alone, if it is one of them.
    """
    wanted = select(Job).where(_left_behind(), *(() if job_id is None else (Job.id == job_id,)))
    settled = session.scalars(
        wanted.with_for_update(skip_locked=True), execution_options={"populate_existing": True}
    ).all()
    for job in settled:
        fault = Fault(
            WORKER_LOST, f"Worker {job.worker} let its lease run out: it was killed, cut off or stopped.", True
        )
        if job.status is JobStatus.CANCELLING:
            cancelled(session, job, "lost", fault)
        elif job.status is JobStatus.PAUSING:
            paused(session, job, "lost", fault)
        else:
            failed(session, job, "lost", fault)
    return list(settled)


def cancelled(session: Session, job: Job, outcome: str, fault: Fault | None = None) -> None:
    """The job's end; ``outcome`` is its last attempt's."""
    job.checkpoint = None
    end(session, job, JobStatus.CANCELLED, outcome, fault)
    telemetry.append_event(session, job.id, "job.cancelled", "The job was cancelled.", {})


def paused(session: Session, job: Job, outcome: str, fault: Fault | None = None) -> None:
    """The job waits at its last checkpoint."""
    end(session, job, JobStatus.PAUSED, outcome, fault)
    message = f"The job waits at step {step(job)} until it is resumed."
    telemetry.append_event(session, job.id, "job.paused", message, {"step": step(job)})


def failed(session: Session, job: Job, outcome: str, fault: Fault) -> None:
    """The job's end; one that may pass leaves the checkpoint."""
    job.error = fault.as_error()
    if not fault.retryable:
        job.checkpoint = None
    end(session, job, JobStatus.FAILED, outcome, fault)
    tried = f" (attempt {job.attempt} of {job.max_attempts})" if fault.retryable else ""
    if job.checkpoint is not None:
        tried += f" Resuming it goes on from step {step(job)}."
    telemetry.append_event(session, job.id, "job.failed", fault.message + tried, fault.as_error())


def end(
    session: Session,
    job: Job,
    status: JobStatus,
    outcome: str,
    fault: Fault | None = None,
    *,
    not_before: Any = None,
) -> None:
    """End the attempt: nobody holds the job, what it offered to others is withdrawn, and the ledger says why.

    Args:
        not_before: for a job that goes back into the queue, the moment before which nobody may claim it.
    """
    job.status, job.worker, job.lease_expires_at = status, None, not_before
    if status.terminal:
        job.finished_at = session.scalar(select(db_now()))
    session.flush()
    for table in (TeacherPart, HostPlace):
        withdraw(session, table, job.id)
    reason, message = (fault.code, storable(fault.message)) if fault else (None, None)
    ended = {"ended_at": db_now(), "outcome": outcome, "reason": reason, "message": message}
    telemetry.write_ledger(session, job.id, job.fence, **ended)


def step(job: Job) -> int:
    """From which the next attempt goes on."""
    return int((job.checkpoint or {}).get("step", 0))


def _left_behind() -> ColumnElement[bool]:
    # A running job that may be tried again is the next worker's.
    over = and_(Job.status == JobStatus.RUNNING, Job.attempt >= Job.max_attempts)
    asked = Job.status.in_(HELD - {JobStatus.RUNNING})
    return and_(Job.lease_expires_at <= db_now(), or_(asked, over))
