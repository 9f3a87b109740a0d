"""Jobs: submitting, reading, and everything that a user may ask of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import ColumnElement, case, insert, null, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from limbeck.errors import Conflict, IdempotencyKeyReused, NotFound
from limbeck.source_names import of_hub
from models.attempt import Attempt
from models.base import db_now, has_item, new_id
from models.job import HELD, TERMINAL, Job, JobStatus
from models.repository import pages, settling, sources, telemetry
from models.repository.catalogue import delete_model, models_of_job
from models.repository.crew import lacking
from models.repository.pages import Page
from models.repository.queue import claim_order, queue_position, require_room
from models.repository.transitions import CANCEL, PAUSE, RESUME, Action
from models.text import refuse_unstorable

__all__ = [
    "checkpoint_keys",
    "claim_order",
    "delete",
    "get",
    "list_page",
    "queue_position",
    "request_cancel",
    "request_pause",
    "requeue_all",
    "rerun",
    "resume",
    "submit",
]


_REPEATED = ("name", "owner", "priority", "method", "labels", "webhook_url", "request_hash", "gpus", "max_attempts")
_SOURCES = ("teacher", "student", "dataset")
_ENDED = tuple(state for state in JobStatus if state in TERMINAL)
#: What the provenance tells of ``teacher.more``, in its order.
_MORE = "more_teachers"
#: And of texts without labels, by their place in the config: ``training/augmentation/0`` …
_UNLABELLED = "unlabelled"
#: In how large parts the old job computed its batches, where it had to find that out.
_MICRO_BATCHES = "micro_batches"


def submit(
    session: Session,
    *,
    name: str,
    owner: str,
    priority: int,
    config: Mapping[str, Any],
    method: str,
    labels: Mapping[str, str],
    webhook_url: str | None,
    idempotency_key: str | None,
    request_hash: str,
    gpus: int,
    max_attempts: int,
) -> tuple[Job, bool]:
    """Put a job into the queue; True says that it is new, False that this key and body have made it before.

    Args:
        config: the DistillConfig as JSON data, defaults filled in.
        labels: the user's ``metadata``.
        request_hash: of the body; tells a repeat from another request under the same key.
        gpus: how many the job needs; 0 runs on a CPU slot.

    Raises:
        IdempotencyKeyReused: the key came with another body before.
        InvalidInput: the config names a data set or model that is not there, or a text cannot be stored.
    """
    values = {
        "name": name,
        "owner": owner,
        "priority": priority,
        "config": dict(config),
        "method": method,
        "labels": dict(labels),
        "webhook_url": webhook_url,
        "idempotency_key": idempotency_key,
        "request_hash": request_hash,
        "gpus": gpus,
        "max_attempts": max_attempts,
    }
    return _once(session, idempotency_key, request_hash, lambda: _create(session, values, "The job is in the queue."))


def get(session: Session, job_id: str, *, locked: bool = False) -> Job:
    """The job as the database has it now; ``locked``: as it stays until the transaction ends.

    Raises:
        NotFound: there is none of this id.
    """
    job = session.get(Job, job_id, populate_existing=True, with_for_update=True if locked else None)
    if job is None:
        raise NotFound(f"There is no job {job_id!r}.")
    return job


def list_page(
    session: Session,
    *,
    limit: int,
    cursor: str | None,
    status: JobStatus | None = None,
    method: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Page[Job]:
    """Jobs, newest first; a job has to carry all of ``labels``.

    Raises:
        InvalidInput: the cursor is not one of this list's.
    """
    query = select(Job)
    if status is not None:
        query = query.where(Job.status == status)
    if method is not None:
        query = query.where(Job.method == method)
    for key, value in (labels or {}).items():
        query = query.where(has_item(Job.labels.expression, key, value))
    return pages.fetch(session, query, Job, limit=limit, cursor=cursor)


def request_cancel(session: Session, job_id: str) -> Job:
    """Cancel: at once where no worker holds the job, or one that is dead, else the worker is told. Asking twice changes
    nothing.

    Raises:
        NotFound, Conflict: the job has ended otherwise.
    """
    return _act(session, job_id, CANCEL)[0]


def request_pause(session: Session, job_id: str) -> Job:
    """Pause: at once where no worker holds the job, or one that is dead, else it writes a checkpoint first.

    Raises:
        NotFound, Conflict: the job is being cancelled, or has ended.
    """
    return _act(session, job_id, PAUSE)[0]


def resume(session: Session, job_id: str, *, most_waiting: int | None = None) -> Job:
    """Put a paused job back into the queue, or one that failed by a fault that may pass: that begins to count its
    attempts anew.

    Args:
        most_waiting: as many jobs may be in the queue.

    Raises:
        NotFound, Conflict: the job is still pausing, is being cancelled, or has ended without a checkpoint.
        InvalidInput: its data set or teacher has been deleted since it failed.
        QueueFull: the job stays as it was.
    """
    job, moved = _act(session, job_id, RESUME)
    if job.status is JobStatus.QUEUED:
        sources.hold(session, job.config)
    if moved and most_waiting is not None:
        require_room(session, most_waiting)
    return job


def requeue_all(session: Session, message: str) -> None:
    """Put every job that a worker holds back into the queue, where all those workers are gone; no attempt is spent."""
    for job in session.scalars(select(Job).where(Job.status == JobStatus.RUNNING)).all():
        job.status, job.worker, job.lease_expires_at = JobStatus.QUEUED, None, None
        job.attempt -= 1
        mine = (Attempt.job_id == job.id, Attempt.ended_at.is_(None))
        session.execute(update(Attempt).where(*mine).values(ended_at=db_now(), outcome="handed_back", message=message))
        telemetry.append_event(session, job.id, "job.queued", message, {})


def rerun(session: Session, job_id: str, *, idempotency_key: str | None = None) -> tuple[Job, bool]:
    """A new job with the same config, and so the same seed, pinned to the revisions and data of the old one; True says
    that it is new, False that this key has made it before.

    Raises:
        IdempotencyKeyReused: the key came with another request before.
        NotFound, Conflict: the job has not ended yet.
        InvalidInput: its data set or teacher has been deleted.
    """
    if idempotency_key is None:
        return _repeat(session, job_id), True
    request_hash = hashlib.sha256(f"rerun {job_id}".encode()).hexdigest()
    keyed = {"idempotency_key": idempotency_key, "request_hash": request_hash}
    return _once(session, idempotency_key, request_hash, lambda: _repeat(session, job_id, **keyed))


def _repeat(session: Session, job_id: str, **keyed: str) -> Job:
    old = get(session, job_id)
    if not old.status.terminal:
        raise _refusal(old, "rerun", _ENDED)
    values = {field: getattr(old, field) for field in _REPEATED} | keyed
    values["config"] = _pinned(old)
    # Under a key of its own: the run writes what it finds under ``dataset`` and ``teacher``, to be compared with this.
    parts = (*_SOURCES, _MORE, _UNLABELLED, _MICRO_BATCHES)
    known = {part: old.provenance[part] for part in parts if part in old.provenance}
    values["provenance"] = {"rerun_of": {"job": old.id, "teacher": None, "dataset": None} | known}
    return _create(session, values, f"The job is in the queue; it repeats {old.id}.")


def delete(session: Session, job_id: str, *, keep_models: bool = False) -> list[str]:
    """Delete a job that has ended, with what it told and, unless they are kept, its models.

    Returns:
        The storage keys that no row names any more; delete them after the commit.

    Raises:
        NotFound, Conflict: the job has not ended, or a job that has not ended learns from one of its models.
    """
    job = get(session, job_id, locked=True)  # so that nobody resumes it meanwhile
    if not job.status.terminal:
        raise _refusal(job, "delete", _ENDED)
    keys = checkpoint_keys(job.checkpoint)
    if not keep_models:
        for model in models_of_job(session, job_id):
            with suppress(NotFound):  # somebody has deleted it in this moment
                keys += delete_model(session, model.id)
    session.delete(job)
    session.flush()
    return keys


def checkpoint_keys(checkpoint: Mapping[str, Any] | None) -> list[str]:
    """Where the storage has a job's resumable state; ``checkpoint`` is the column of that name."""
    files = (checkpoint or {}).get("files", {})
    return [file["key"] for file in files.values() if "key" in file]


def _earlier(session: Session, key: str | None, request_hash: str) -> Job | None:
    if key is None:
        return None
    job = session.scalar(select(Job).where(Job.idempotency_key == key))
    if job is not None and job.request_hash != request_hash:
        raise IdempotencyKeyReused(
            f"The Idempotency-Key {key!r} came with another request before, which made {job.id}. "
            "Send the same body, or another key."
        )
    return job


def _once(
    session: Session, key: str | None, request_hash: str, create: Callable[[], Job], tries: int = 3
) -> tuple[Job, bool]:
    """What ``create`` makes, or what the same request under the same key has made before."""
    earlier = _earlier(session, key, request_hash)
    if earlier is not None:
        return earlier, False
    try:
        with session.begin_nested():
            return create(), True
    except IntegrityError:  # the same request in another process was faster; its job may be deleted again by now
        if tries == 1:
            raise
    return _once(session, key, request_hash, create, tries - 1)


def _create(session: Session, values: Mapping[str, Any], message: str) -> Job:
    refuse_unstorable({field: values[field] for field in ("name", "owner", "labels", "config")})
    sources.hold(session, values["config"])
    job_id = new_id("job")
    session.execute(insert(Job).values(id=job_id, created_at=db_now(), **values))
    telemetry.append_event(session, job_id, "job.queued", message, {})
    job = get(session, job_id)
    missing = lacking(session, job.gpus, job.config)
    if missing is not None:
        telemetry.append_event(session, job_id, "job.waiting", f"The job waits for {missing}.", {"gpus": job.gpus})
    return job


def _act(session: Session, job_id: str, action: Action) -> tuple[Job, bool]:
    """The job as the action leaves it; True says that it changed it, False that it had been granted before."""
    moved = _move(session, job_id, action)
    # Of a worker that is dead nothing can be asked. It may be what kept the job in a state that forbids the action.
    if settling.settle_left_behind(session, job_id) and not moved:
        moved = _move(session, job_id, action)
    job = get(session, job_id)
    if not moved and job.status not in action.settled:
        raise _refusal(job, action.name, action.allowed)
    return job, moved


def _move(session: Session, job_id: str, action: Action) -> bool:
    # One statement decides, so that a worker's write in between cannot be overwritten.
    unheld = Job.status.not_in(HELD)
    ended = Job.status.in_(TERMINAL)
    possible = or_(Job.status.not_in(action.from_checkpoint), Job.checkpoint.is_not(None))
    moved = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(action.moves), possible)
        .values(
            status=case(action.moves, value=Job.status),
            finished_at=case((_ends(action), db_now()), (ended, null()), else_=Job.finished_at),
            error=case((ended, null()), else_=Job.error),
            attempt=case((ended, 0), else_=Job.attempt),
            checkpoint=case((_ends(action), null()), else_=Job.checkpoint),
            lease_expires_at=case((unheld, null()), else_=Job.lease_expires_at),
            version=Job.version + 1,
        )
        .returning(Job.status)
        .execution_options(synchronize_session=False)
    )
    if moved is None:
        return False
    kind, message = action.events[moved]
    telemetry.append_event(session, job_id, kind, message, {})
    return True


def _ends(action: Action) -> ColumnElement[bool]:
    """Whether the action ends the job in the state that it is in."""
    return Job.status.in_([before for before, after in action.moves.items() if after.terminal])


def _pinned(old: Job) -> dict[str, Any]:
    """The old job's config with the revisions of the hub that it resolved to; a built-in's is its package's version."""
    config = dict(old.config)
    for part in _SOURCES:
        revision = (old.provenance.get(part) or {}).get("revision")
        if revision is not None and of_hub(config[part]["source"]):
            config[part] = {**config[part], "revision": revision}
        elif config.get(part, {}).get("revision") is not None and not of_hub(config[part].get("source") or ""):
            config[part] = {**config[part], "revision": None}  # as repeats were pinned once, which is refused today
    found = old.provenance.get(_MORE) or []
    if found:
        more = [
            {**named, "revision": one.get("revision") or named.get("revision")} if of_hub(named["source"]) else named
            for named, one in zip(config["teacher"]["more"], found, strict=True)
        ]
        config["teacher"] = {**config["teacher"], "more": more}
    texts = {part: one["revision"] for part, one in (old.provenance.get(_UNLABELLED) or {}).items() if one["revision"]}
    if texts:
        augmentation = [
            {**one, "revision": texts[part]} if (part := f"training/augmentation/{place}") in texts else one
            for place, one in enumerate(config["training"]["augmentation"])
        ]
        config["training"] = {**config["training"], "augmentation": augmentation}
    return config


def _refusal(job: Job, action: str, allowed: Sequence[str]) -> Conflict:
    return Conflict(f"{job.id} is {job.status}; {action} is possible while it is: {', '.join(allowed)}.")
