"""Which workers are connected, and which jobs theirs can serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, delete, func, insert, select, type_coerce, update
from sqlalchemy.orm import Session

from models.base import db_now
from models.job import Job
from models.present_worker import PresentWorker


def served_by(gpus: int) -> tuple[ColumnElement[bool], ...]:
    """The jobs that a worker with so many GPUs can serve; without any, a device is a process. See also
    :meth:`Crew.lacks`."""
    # Rows from before there were several devices, or hosts, have none.
    devices, hosts = (func.coalesce(Job.config["training"][name].as_integer(), 1) for name in ("devices", "hosts"))
    return (Job.gpus <= gpus, *(() if gpus == 0 else (devices <= gpus * hosts,)))


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers that are connected."""

    gpus: tuple[int, ...]  #: that each has

    def lacks(self, gpus: int, config: Mapping[str, Any]) -> str | None:
        """What a job of this configuration that asks for so many GPUs waits for and none of them is, for people; None
        where one can serve it, now or later."""
        training = config.get("training", {})
        on_each = training.get("devices", 1) // training.get("hosts", 1)
        needed = max(gpus, on_each)
        if any(needed <= found or gpus == found == 0 for found in self.gpus):
            return None
        wanted = "a worker"
        if gpus:
            wanted += f" with {_count(gpus)}"
        elif on_each > 1:
            wanted += f" with {_count(on_each)}, one for each device, or with none at all"
        return f"{wanted}; {self._described()}"

    def _described(self) -> str:
        if not self.gpus:
            return "none is connected"
        most = max(self.gpus)
        if len(self.gpus) == 1:
            return f"the only one that is connected has {_count(most)}"
        return f"of the {len(self.gpus)} that are connected " + (
            f"none has more than {_count(most)}" if most else "none has a GPU"
        )


def crew(session: Session) -> Crew:
    """Who is connected now."""
    present = select(PresentWorker.gpus).where(PresentWorker.expires_at > db_now())
    return Crew(tuple(session.scalars(present)))


def lacking(session: Session, gpus: int, config: Mapping[str, Any]) -> str | None:
    """:meth:`Crew.lacks` for what is written down: where nobody is connected at all, somebody may be about to start."""
    here = crew(session)
    return here.lacks(gpus, config) if here.gpus else None


def say_present(session: Session, worker: str, gpus: int, seconds: float) -> None:
    """The worker is there, for so long or until it says so again. Those that have gone are forgotten."""
    now: ColumnElement[int] = type_coerce(db_now(), BigInteger)
    until = now + round(seconds * 1000)
    mine = PresentWorker.id == worker
    renewed = session.scalar(update(PresentWorker).where(mine).values(expires_at=until).returning(PresentWorker.id))
    if renewed is None:
        session.execute(insert(PresentWorker).values(id=worker, gpus=gpus, expires_at=until))
    session.execute(delete(PresentWorker).where(PresentWorker.expires_at <= db_now()))


def say_gone(session: Session, worker: str) -> None:
    """The worker takes no more jobs."""
    session.execute(delete(PresentWorker).where(PresentWorker.id == worker))


def _count(gpus: int) -> str:
    return "no GPU" if gpus == 0 else f"{gpus} GPU{'s' * (gpus > 1)}"
