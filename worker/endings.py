"""How an attempt ends, and what then becomes of its job.

An attempt that was handed back or paused does not count towards ``max_attempts``: nothing went wrong in it. One that
was lost or failed does. The checkpoint goes with a job's end, except where a retryable fault ended it: a full disk does
not cost the last good state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.base import db_now
from models.host_place import HostPlace
from models.job import HELD, Job, JobStatus
from models.model import ModelKind
from models.part import TeacherPart
from models.repository import catalogue, telemetry
from models.repository.catalogue import StoredFile
from models.text import storable
from worker.claims import withdraw
from worker.lease import Lease, hold, in_seconds, write_ledger

#: Characters of a model's columns for its name, and for where its teachers came from.
_LONGEST_NAME = 200
_LONGEST_TEACHERS = 300


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt could not go on."""

    code: str
    message: str
    retryable: bool

    def as_error(self) -> dict[str, Any]:
        return {"code": self.code, "message": storable(self.message), "retryable": self.retryable}


WORKER_LOST = "worker_lost"


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model whose files are stored and whose row is not written yet."""

    id: str
    kind: ModelKind
    files: Sequence[StoredFile]
    facts: Mapping[str, Any]  #: columns of ``models``: task, labels, architecture, layers, parameters


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt that went through leaves."""

    models: Sequence[NewModel]
    result: Mapping[str, Any]
    scorecard: Mapping[str, Any]


def succeed(session: Session, lease: Lease, outcome: Outcome) -> JobStatus:
    """Write the models and end the job, all at once. A job that is being cancelled ends as cancelled, without them.

    Raises:
        LeaseLost: another worker owns the job; nothing was written.
    """
    job = hold(session, lease)
    if job.status is JobStatus.CANCELLING:
        return stop(session, lease)
    for model in outcome.models:
        catalogue.add_model(
            session,
            model_id=model.id,
            kind=model.kind,
            name=_name(job, model.kind),
            files=model.files,
            job_id=job.id,
            teacher=_teachers(job.config["teacher"]),
            dataset=job.config["dataset"]["source"],
            method=job.method,
            **model.facts,
        )
    job.result, job.scorecard, job.checkpoint = dict(outcome.result), dict(outcome.scorecard), None
    job.progress = {**(job.progress or {}), "percent": 100.0, "eta_seconds": 0.0}
    model_id = outcome.result["model_id"]
    _end(session, job, lease, JobStatus.SUCCEEDED, "succeeded")
    _tell(session, job, "job.succeeded", f"The student is {model_id}.", dict(outcome.result))
    return job.status


def _name(job: Job, kind: ModelKind) -> str:
    """The student has the job's name, the baseline says that it is one; a job's name may fill the column alone."""
    if kind is ModelKind.STUDENT:
        return job.name
    mark = f" ({kind})"
    return job.name[: _LONGEST_NAME - len(mark)] + mark


def _teachers(teacher: Mapping[str, Any]) -> str:
    """All that a config names, in one column; where they are too long for it, the first and how many more."""
    more = [one["source"] for one in teacher.get("more") or ()]
    whole = " + ".join([teacher["source"], *more])
    return whole if len(whole) <= _LONGEST_TEACHERS else f"{teacher['source']} + {len(more)} more"


def stop(session: Session, lease: Lease) -> JobStatus:
    """End the attempt at its last checkpoint: cancelled or paused where the user wants it, else handed back.

    Raises:
        LeaseLost: another worker owns the job; nothing was written.
    """
    job = hold(session, lease)
    if job.status is JobStatus.CANCELLING:
        _cancelled(session, job, lease, "cancelled")
    elif job.status is JobStatus.PAUSING:
        job.attempt -= 1
        _paused(session, job, lease, "paused")
    else:
        job.attempt -= 1
        _end(session, job, lease, JobStatus.QUEUED, "handed_back")
        _tell(session, job, "job.queued", "The worker shuts down and hands the job back.", {"step": _step(job)})
    return job.status


def fail(session: Session, lease: Lease, fault: Fault, *, retry_seconds: float) -> JobStatus:
    """End the attempt by a fault. A retryable one puts the job back until its attempts are used up.

    Args:
        retry_seconds: before the first retry; three times as long before each further one.

    Raises:
        LeaseLost: another worker owns the job; nothing was written.
    """
    job = hold(session, lease)
    if job.status is JobStatus.CANCELLING:
        _cancelled(session, job, lease, "failed", fault)
    elif not fault.retryable or job.attempt >= job.max_attempts:
        _failed(session, job, lease, "failed", fault)
    elif job.status is JobStatus.PAUSING:
        _paused(session, job, lease, "failed", fault)
    else:
        _retrying(session, job, lease, fault, retry_seconds * 3 ** (job.attempt - 1))
    return job.status


def settle_expired(session: Session) -> list[Job]:
    """End what workers let go of and nobody may claim: jobs to cancel, jobs to pause, jobs without an attempt left."""
    expired = select(Job).where(Job.status.in_(HELD), Job.lease_expires_at <= db_now())
    settled = []
    for job in session.scalars(expired.with_for_update(skip_locked=True)).all():
        lease = Lease(job.id, job.fence)
        fault = Fault(
            WORKER_LOST, f"Worker {job.worker} let its lease run out: it was killed, cut off or stopped.", True
        )
        if job.status is JobStatus.CANCELLING:
            _cancelled(session, job, lease, "lost", fault)
        elif job.status is JobStatus.PAUSING:
            _paused(session, job, lease, "lost", fault)
        elif job.attempt >= job.max_attempts:
            _failed(session, job, lease, "lost", fault)
        else:
            continue
        settled.append(job)
    return settled


def _cancelled(session: Session, job: Job, lease: Lease, outcome: str, fault: Fault | None = None) -> None:
    job.checkpoint = None
    _end(session, job, lease, JobStatus.CANCELLED, outcome, fault)
    _tell(session, job, "job.cancelled", "The job was cancelled.", {})


def _paused(session: Session, job: Job, lease: Lease, outcome: str, fault: Fault | None = None) -> None:
    _end(session, job, lease, JobStatus.PAUSED, outcome, fault)
    _tell(session, job, "job.paused", f"The job waits at step {_step(job)} until it is resumed.", {"step": _step(job)})


def _retrying(session: Session, job: Job, lease: Lease, fault: Fault, pause: float) -> None:
    _end(session, job, lease, JobStatus.QUEUED, "failed", fault, not_before=in_seconds(pause))
    message = (
        f"Attempt {job.attempt} of {job.max_attempts} failed, the next goes on from step {_step(job)}: {fault.message}"
    )
    _tell(session, job, "job.retrying", message, fault.as_error())


def _failed(session: Session, job: Job, lease: Lease, outcome: str, fault: Fault) -> None:
    job.error = fault.as_error()
    if not fault.retryable:
        job.checkpoint = None
    _end(session, job, lease, JobStatus.FAILED, outcome, fault)
    tried = f" (attempt {job.attempt} of {job.max_attempts})" if fault.retryable else ""
    if job.checkpoint is not None:
        tried += f" Resuming it goes on from step {_step(job)}."
    _tell(session, job, "job.failed", fault.message + tried, fault.as_error())


def _end(
    session: Session,
    job: Job,
    lease: Lease,
    status: JobStatus,
    outcome: str,
    fault: Fault | None = None,
    *,
    not_before: Any = None,
) -> None:
    job.status, job.worker, job.lease_expires_at = status, None, not_before
    if status.terminal:
        job.finished_at = session.scalar(select(db_now()))
    session.flush()
    for table in (TeacherPart, HostPlace):
        withdraw(session, table, job.id)
    reason, message = (fault.code, storable(fault.message)) if fault else (None, None)
    write_ledger(session, lease, ended_at=db_now(), outcome=outcome, reason=reason, message=message)


def _tell(session: Session, job: Job, kind: str, message: str, data: dict[str, Any]) -> None:
    telemetry.append_event(session, job.id, kind, message, data)


def _step(job: Job) -> int:
    return int((job.checkpoint or {}).get("step", 0))
