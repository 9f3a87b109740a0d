"""How the attempt of a worker that holds it ends, and what then becomes of its job.

An attempt that was handed back or paused does not count towards ``max_attempts``: nothing went wrong in it. One that
was lost or failed does. The checkpoint goes with a job's end, except where a retryable fault ended it: a full disk does
not cost the last good state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from models.job import Job, JobStatus
from models.model import ModelKind
from models.repository import catalogue, settling, telemetry
from models.repository.catalogue import StoredFile
from models.repository.settling import Fault
from worker.lease import Lease, hold, in_seconds

#: Characters of a model's columns for its name, and for where its teachers came from.
_LONGEST_NAME = 200
_LONGEST_TEACHERS = 300
#: Seconds that a job waits for a further attempt, unless ``retry_seconds`` alone is more: losses count as attempts,
#: and three times as long for each would soon be for ever.
_LONGEST_PAUSE = 3600.0


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
    if job.progress is not None:  # parts of it alone are none that could be read back
        job.progress = {**job.progress, "percent": 100.0, "eta_seconds": 0.0}
    model_id = outcome.result["model_id"]
    settling.end(session, job, JobStatus.SUCCEEDED, "succeeded")
    telemetry.append_event(session, job.id, "job.succeeded", f"The student is {model_id}.", dict(outcome.result))
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
        settling.cancelled(session, job, "cancelled")
    elif job.status is JobStatus.PAUSING:
        job.attempt -= 1
        settling.paused(session, job, "paused")
    else:
        job.attempt -= 1
        settling.end(session, job, JobStatus.QUEUED, "handed_back")
        message = "The worker shuts down and hands the job back."
        telemetry.append_event(session, job.id, "job.queued", message, {"step": settling.step(job)})
    return job.status


def fail(session: Session, lease: Lease, fault: Fault, *, retry_seconds: float) -> JobStatus:
    """End the attempt by a fault. A retryable one puts the job back until its attempts are used up.

    Args:
        retry_seconds: before the first retry; three times as long before each further one, up to an hour.

    Raises:
        LeaseLost: another worker owns the job; nothing was written.
    """
    job = hold(session, lease)
    if job.status is JobStatus.CANCELLING:
        settling.cancelled(session, job, "failed", fault)
    elif not fault.retryable or job.attempt >= job.max_attempts:
        settling.failed(session, job, "failed", fault)
    elif job.status is JobStatus.PAUSING:
        settling.paused(session, job, "failed", fault)
    else:
        pause = min(retry_seconds * 3 ** (job.attempt - 1), max(retry_seconds, _LONGEST_PAUSE))
        _retrying(session, job, fault, pause)
    return job.status


def _retrying(session: Session, job: Job, fault: Fault, pause: float) -> None:
    settling.end(session, job, JobStatus.QUEUED, "failed", fault, not_before=in_seconds(pause))
    step = settling.step(job)
    message = f"Attempt {job.attempt} of {job.max_attempts} failed, the next goes on from step {step}: {fault.message}"
    telemetry.append_event(session, job.id, "job.retrying", message, fault.as_error())
