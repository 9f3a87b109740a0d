"""Who holds a job. Every write of a worker goes through here and carries its fence.

A claim raises the row's fence; a write with an older one, or to a job that no worker holds any more, changes no row and
raises :class:`LeaseLost`. Leases are judged by the database's clock alone. All functions take the session first; the
caller's block is the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, and_, case, func, insert, or_, select, type_coerce, update
from sqlalchemy.orm import Session

from limbeck.errors import LeaseLost
from models.attempt import Attempt
from models.base import db_now
from models.job import HELD, Job, JobStatus
from models.repository import telemetry
from models.repository.crew import served_by
from models.repository.queue import claim_order
from worker.telemetry import Batch


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a job, until the lease runs out or somebody else claims it."""

    job_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker holds now."""

    lease: Lease
    job: Job  #: as it was when it was claimed

    @property
    def devices(self) -> int:
        """The processes that will train it on this host; GPUs that it has where there are GPUs."""
        training = self.job.config.get("training", {})
        wanted: int = training.get("devices", 1) // training.get("hosts", 1)
        return max(1, self.job.gpus, wanted)


class Wish(StrEnum):
    """What the user wants of a job that runs."""

    GO_ON = "go_on"
    PAUSE = "pause"
    CANCEL = "cancel"


WISHES = {JobStatus.RUNNING: Wish.GO_ON, JobStatus.PAUSING: Wish.PAUSE, JobStatus.CANCELLING: Wish.CANCEL}


@dataclass(frozen=True, slots=True)
class Holder:
    """Who claims."""

    worker: str
    host: str
    pid: int


def claim(
    session: Session, holder: Holder, *, lease_seconds: float, gpus: int, most: int | None = None
) -> Claim | None:
    """Take the next due job that needs at most ``gpus``; None where there is none.

    Where there are GPUs each of a job's devices is one, whether it asked for them or not.

    One statement chooses and takes it, so that of any number of workers one gets the row.

    Args:
        gpus: that are free.
        most: that there are, by default as many. The next job that these could serve is not passed over when it needs
            more than are free: nothing is taken then, else a stream of small jobs would never leave it its GPUs.
    """
    chosen = (
        select(Job.id)
        .where(due(), *served_by(gpus if most is None else most))
        .order_by(*claim_order())
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
        .scalar_subquery()
    )
    job = session.scalar(
        update(Job)
        .where(Job.id == chosen, due(), *served_by(gpus))
        .values(
            status=JobStatus.RUNNING,
            attempt=Job.attempt + 1,
            fence=Job.fence + 1,
            version=Job.version + 1,
            worker=holder.worker,
            lease_expires_at=in_seconds(lease_seconds),
            started_at=func.coalesce(Job.started_at, db_now()),
            error=None,
        )
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    if job is None:
        return None
    _open_attempt(session, job, holder)
    return Claim(Lease(job.id, job.fence), job)


def one_waits(session: Session, gpus: int) -> bool:
    """Whether a job is due that so many GPUs could serve."""
    return session.scalar(select(Job.id).where(due(), *served_by(gpus)).limit(1)) is not None


def beat(session: Session, lease: Lease, lease_seconds: float) -> Wish:
    """Renew the lease. Readers see nothing change, so the row's version stays.

    Raises:
        LeaseLost: another worker claimed the job, or it has ended.
    """
    return WISHES[_guarded(session, lease, lease_expires_at=in_seconds(lease_seconds))]


def wish(session: Session, lease: Lease) -> Wish:
    """What the user wants; reads only.

    Raises:
        LeaseLost: another worker claimed the job, or it has ended.
    """
    status = session.scalar(select(Job.status).where(*_mine(lease)))
    if status is None:
        raise _lost(lease)
    return WISHES[status]


def record(session: Session, lease: Lease, batch: Batch) -> None:
    """Write what the job told since the last time.

    Raises:
        LeaseLost: another worker claimed the job, or it has ended; nothing was written.
    """
    values: dict[str, Any] = {"version": Job.version + 1}
    for field in ("stage", "progress", "provenance"):
        value = getattr(batch, field)
        if value is not None:
            values[field] = value
    _guarded(session, lease, **values)
    for event in batch.events:
        telemetry.append_event(session, lease.job_id, event.kind, event.message, event.data)
    if batch.points:
        telemetry.add_metrics(session, lease.job_id, batch.points)
    if batch.log:
        telemetry.add_log(session, lease.job_id, lease.fence, batch.log)
    if batch.progress is not None:
        telemetry.write_ledger(session, lease.job_id, lease.fence, last_step=batch.progress["step"])


def commit_checkpoint(session: Session, lease: Lease, checkpoint: Mapping[str, Any], *, tell: bool = True) -> None:
    """Make ``checkpoint``, whose files are stored, what the next attempt goes on from.

    Args:
        tell: write an event; without one, the step is the last checkpoint's and only what is around it has changed.

    Raises:
        LeaseLost: another worker claimed the job, or it has ended; nothing was written.
    """
    _guarded(session, lease, checkpoint=dict(checkpoint), version=Job.version + 1)
    step = checkpoint["step"]
    if tell:
        telemetry.append_event(session, lease.job_id, "checkpoint.saved", f"Saved at step {step}.", {"step": step})
    # While the checkpoint was on its way the job trained on, and may have told of it.
    last_step = case((Attempt.last_step < step, step), else_=Attempt.last_step)
    telemetry.write_ledger(session, lease.job_id, lease.fence, last_step=last_step)


def hold(session: Session, lease: Lease) -> Job:
    """The row, locked until the transaction ends.

    Raises:
        LeaseLost: another worker claimed the job, or it has ended.
    """
    _guarded(session, lease, version=Job.version + 1)
    job = session.get(Job, lease.job_id, populate_existing=True)
    if job is None:
        raise _lost(lease)
    return job


def due() -> ColumnElement[bool]:
    """Rows that a worker may claim: waiting ones, and those whose worker let the lease run out.

    A waiting row's ``lease_expires_at`` is the moment before which a retry should not begin.
    """
    over = Job.lease_expires_at <= db_now()
    waiting = and_(Job.status == JobStatus.QUEUED, or_(Job.lease_expires_at.is_(None), over))
    return or_(waiting, and_(Job.status == JobStatus.RUNNING, over, Job.attempt < Job.max_attempts))


def in_seconds(seconds: float) -> ColumnElement[Any]:
    """A moment from now on, by the database's clock."""
    now: ColumnElement[int] = type_coerce(db_now(), BigInteger)
    return now + round(seconds * 1000)


def seconds_until(session: Session, moment: datetime) -> float:
    """How far away a moment is, by the database's clock."""
    now = session.scalar(select(db_now()))
    return (moment - now).total_seconds() if now is not None else 0.0


def _mine(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == lease.job_id, Job.fence == lease.fence, Job.status.in_(HELD))


def _guarded(session: Session, lease: Lease, **values: Any) -> JobStatus:
    """The one way in which a worker changes a row that it holds; answers the row's status."""
    status = session.scalar(
        update(Job)
        .where(*_mine(lease))
        .values(**values)
        .returning(Job.status)
        .execution_options(synchronize_session=False)
    )
    if status is None:
        raise _lost(lease)
    return status


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.job_id} is no longer held under fence {lease.fence}; nothing was written.")


def _open_attempt(session: Session, job: Job, holder: Holder) -> None:
    lost = session.scalars(
        update(Attempt)
        .where(Attempt.job_id == job.id, Attempt.ended_at.is_(None))
        .values(ended_at=db_now(), outcome="lost", reason="worker_lost", message="The worker let its lease run out.")
        .returning(Attempt.worker)
        .execution_options(synchronize_session=False)
    ).all()
    for worker in lost:
        telemetry.append_event(
            session, job.id, "attempt.lost", f"Worker {worker} let its lease run out.", {"worker": worker}
        )
    step = (job.checkpoint or {}).get("step", 0)
    session.execute(
        insert(Attempt).values(
            job_id=job.id,
            fence=job.fence,
            number=job.fence,
            worker=holder.worker,
            host=holder.host,
            pid=holder.pid,
            started_at=db_now(),
            resumed_from_step=step,
            last_step=step,
        )
    )
    message = f"Worker {holder.worker} goes on from step {step}." if step else f"Worker {holder.worker} begins."
    facts = {"worker": holder.worker, "attempt": job.attempt, "resumed_from_step": step}
    telemetry.append_event(session, job.id, "job.started", message, facts)
