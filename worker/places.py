"""Who lends a host to which training. All functions take the session first; the caller's block is the transaction.

A place is claimed only while its job runs under the fence that offered it, and kept while a worker holds the job under
that fence: one that pauses saves its state with all its ranks. Nothing about the job is written by who takes a place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, exists, insert, or_, select
from sqlalchemy.orm import Session

from limbeck.hosts import Invitation
from limbeck.machine import installed, likeness
from models.host_place import HostPlace
from models.job import HELD, Job
from models.repository.offered import free
from worker.claims import Taken, execute, take
from worker.lease import Holder, Lease, wish


@dataclass(frozen=True, slots=True)
class PlaceClaim(Taken):
    """A place that this worker has."""

    table = HostPlace
    kept_while = HELD

    invitation: Invitation

    @property
    def devices(self) -> int:
        """Slots that it takes where each is a GPU."""
        return self.invitation.devices


def kind_of_host(*, gpus: bool) -> str:
    """Hosts of one kind can share a training: ranks that round otherwise would drift apart.

    With GPUs the processor does not matter, and that they are alike is for whoever sets the hosts up.
    """
    limbeck = f"limbeck {installed('limbeck')}"
    if gpus:
        return f"GPUs, torch {installed('torch')}, transformers {installed('transformers')}, {limbeck}"
    return f"{likeness()}, {limbeck}"


def invite(session: Session, lease: Lease, invitation: Invitation, *, kind: str, gpus: bool) -> None:
    """Write the places that are wanted, beside those that hosts have which are there already.

    Raises:
        LeaseLost: another worker claimed the job, or it has ended.
    """
    wish(session, lease)
    earlier = or_(HostPlace.fence != lease.fence, free(HostPlace))
    execute(session, delete(HostPlace).where(HostPlace.job_id == lease.job_id, earlier))
    row = {
        "job_id": lease.job_id,
        "fence": lease.fence,
        "likeness": kind,
        "devices": invitation.devices,
        "gpus": invitation.devices if gpus else 0,
        "threads": invitation.threads,
        "address": invitation.address,
        "port": invitation.port,
        "secret": invitation.secret,
    }
    session.execute(insert(HostPlace), [row] * invitation.places)


def settle(session: Session, lease: Lease, workers: Sequence[str]) -> None:
    """These are there and keep their places; no others are wanted."""
    mine = (HostPlace.job_id == lease.job_id, HostPlace.fence == lease.fence)
    others = or_(HostPlace.worker.is_(None), HostPlace.worker.not_in(workers))
    execute(session, delete(HostPlace).where(*mine, others))


def claim(
    session: Session,
    holder: Holder,
    *,
    kind: str,
    gpus: int | None,
    threads: int,
    lease_seconds: float,
    without: Collection[str] = (),
    unreached: Collection[str] = (),
) -> PlaceClaim | None:
    """Take a place that a host of this kind can fill; None where there is none.

    Args:
        gpus: that are free; None where the worker has none at all, and computes on its cores.
        threads: that a process has there.
        without: jobs that it has tried to help in vain.
        unreached: secrets of trainings to which it has found no way.
    """
    on_cores = and_(HostPlace.gpus == 0, HostPlace.threads <= threads)
    fits = on_cores if gpus is None else and_(HostPlace.gpus > 0, HostPlace.gpus <= gpus)
    elsewhere = exists(select(Job.id).where(Job.id == HostPlace.job_id, Job.worker != holder.worker))
    wanted = [HostPlace.likeness == kind, fits, elsewhere]
    wanted += [HostPlace.job_id.not_in(without)] if without else []
    wanted += [HostPlace.secret.not_in(unreached)] if unreached else []
    row = take(session, HostPlace, holder, *wanted, order=(HostPlace.id,), lease_seconds=lease_seconds)
    if row is None:
        return None
    invitation = Invitation(row.address, row.port, row.secret, 1, row.devices, row.threads)
    return PlaceClaim(row.id, row.claims, row.job_id, invitation)


def config_of(session: Session, claimed: PlaceClaim) -> dict[str, Any] | None:
    """The place's job's; None where the job is no more."""
    return session.scalar(select(Job.config).where(Job.id == claimed.job_id))
