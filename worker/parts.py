"""Who computes which part of a job's teacher pass. All functions take the session first; the caller's block is the
transaction.

Nothing here decides what is right: a part's answers are the same whoever computes them, and a job does without. The
rows keep two helpers from the same part, and end the help together with what it is for: a part can be claimed and kept
only while its job runs under the fence that offered it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, or_, select
from sqlalchemy.orm import Session

from limbeck.offer import Offer, Part
from models.job import HELD, Job
from models.part import TeacherPart
from models.repository.offered import free, withdraw
from worker.claims import Taken, execute, take
from worker.lease import Holder, Lease, due, wish


@dataclass(frozen=True, slots=True)
class PartClaim(Taken):
    """A part that this worker computes now."""

    table = TeacherPart

    key: str
    part: Part
    teacher: str
    threads: int

    @property
    def devices(self) -> int:
        """Slots that it takes."""
        return 1


def offer(session: Session, lease: Lease, offered: Offer, *, without: Collection[Part] = ()) -> bool:
    """Write the parts of an offer, in place of whatever the job offered before; False while the job's committed
    checkpoint lacks what a helper needs.

    Args:
        without: parts that are there already.

    Raises:
        LeaseLost: another worker claimed the job, or it has ended.
    """
    wish(session, lease)
    checkpoint = session.scalar(select(Job.checkpoint).where(Job.id == lease.job_id))
    roles = {name.split(".", 1)[0] for name in (checkpoint or {}).get("files", {})}
    if not {"data", offered.teacher} <= roles:
        return False
    withdraw(session, TeacherPart, lease.job_id)
    rows = [
        {
            "job_id": lease.job_id,
            "fence": lease.fence,
            "key": offered.key,
            "first_batch": part.first,
            "end_batch": part.end,
            "teacher": offered.teacher,
            "likeness": offered.likeness,
            "threads": offered.threads,
        }
        for part in offered.left
        if part != offered.own and part not in without
    ]
    if rows:
        session.execute(insert(TeacherPart), rows)
    return True


def narrow(session: Session, lease: Lease, offered: Offer) -> None:
    """Leave out what is done by now, and what the job itself is at, unless somebody is at it too."""
    mine = (TeacherPart.job_id == lease.job_id, TeacherPart.fence == lease.fence, TeacherPart.key == offered.key)
    left = [part.first for part in offered.left]
    gone: list[ColumnElement[bool]] = [TeacherPart.first_batch.not_in(left)]
    if offered.own is not None:
        gone.append((TeacherPart.first_batch == offered.own.first) & free(TeacherPart))
    execute(session, delete(TeacherPart).where(*mine, or_(*gone)))


def clear(session: Session, lease: Lease) -> bool:
    """This attempt offers nothing any more; whether it still has the job."""
    execute(session, delete(TeacherPart).where(TeacherPart.job_id == lease.job_id, TeacherPart.fence == lease.fence))
    mine = (Job.id == lease.job_id, Job.fence == lease.fence, Job.status.in_(HELD))
    return session.scalar(select(Job.id).where(*mine)) is not None


def held(session: Session, lease: Lease) -> list[int]:
    """First batches of the job's parts that somebody is at."""
    query = select(TeacherPart.first_batch).where(TeacherPart.job_id == lease.job_id, ~free(TeacherPart))
    return list(session.scalars(query.order_by(TeacherPart.first_batch)))


def claim(
    session: Session,
    holder: Holder,
    *,
    likeness: str,
    threads: int,
    lease_seconds: float,
    without: Collection[str] = (),
    of: PartClaim | None = None,
) -> PartClaim | None:
    """Take a part that a machine of this likeness can compute; None where there is none.

    The last one first: the job works from the front.

    Args:
        threads: that this worker may use; a pass that takes more is not for it.
        without: keys of passes that it has tried in vain.
        of: only of the pass that this is a part of.
    """
    wanted = [TeacherPart.likeness == likeness, TeacherPart.threads <= threads]
    wanted += [TeacherPart.key.not_in(without)] if without else []
    wanted += [TeacherPart.job_id == of.job_id, TeacherPart.key == of.key] if of is not None else []
    order = (TeacherPart.job_id, TeacherPart.first_batch.desc())
    row = take(session, TeacherPart, holder, *wanted, order=order, lease_seconds=lease_seconds)
    if row is None:
        return None
    part = Part(row.first_batch, row.end_batch)
    return PartClaim(row.id, row.claims, row.job_id, row.key, part, row.teacher, row.threads)


def job_waits(session: Session) -> bool:
    """Whether there is a job that a CPU slot could run."""
    return session.scalar(select(Job.id).where(due(), Job.gpus == 0).limit(1)) is not None


def checkpoint_for(session: Session, claimed: PartClaim) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The config of the part's job, and of its committed checkpoint what a helper needs; None where there is none."""
    row = session.execute(select(Job.config, Job.checkpoint).where(Job.id == claimed.job_id)).one_or_none()
    if row is None or row.checkpoint is None:
        return None
    return row.config, {**row.checkpoint, "files": _of_roles(row.checkpoint, ("journal", "data", claimed.teacher))}


def _of_roles(checkpoint: dict[str, Any], roles: Iterable[str]) -> dict[str, Any]:
    return {name: file for name, file in checkpoint["files"].items() if name.split(".", 1)[0] in roles}
