"""Places in the queue for clients that ask often: worked out for all jobs at once, and kept for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from models.job import Job, JobStatus
from models.repository import overview
from models.repository.crew import Crew, crew
from models.repository.queue import Pace, pace, queue_position

_KEPT_SECONDS = 0.25
#: Working them out takes at most one part in so many of a process's time, however long the queue is.
_SHARE = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job waits."""

    position: int  #: 1 for the job that is next
    #: Seconds, at the least and at the most; none before jobs have ended, and none where no worker can serve it.
    starts_in: tuple[float, float] | None
    waits_for: str | None  #: what none of the connected workers is


def place_of(session: Session, job: Job) -> Place | None:
    """A job's place as it is now; None for one that does not wait."""
    position = queue_position(session, job)
    return None if position is None else _place(job, position, pace(session), crew(session))


class Places:
    """The queue's order as it was a moment ago. A job that is newer than that is looked up by itself."""

    def __init__(self) -> None:
        self._positions: Mapping[str, int] = {}
        self._pace: Pace | None = None
        self._crew = Crew(())
        self._good_until = 0.0
        self._working = threading.Lock()

    def of(self, session: Session, job: Job) -> Place | None:
        """A job's place; None for one that does not wait."""
        if job.status is not JobStatus.QUEUED:
            return None
        if time.monotonic() >= self._good_until and self._working.acquire(blocking=False):
            try:
                self._work_out(session)
            finally:
                self._working.release()
        position = self._positions.get(job.id)
        return place_of(session, job) if position is None else _place(job, position, self._pace, self._crew)

    def _work_out(self, session: Session) -> None:
        began = time.monotonic()
        self._positions = overview.queue_positions(session)
        self._pace = pace(session)
        self._crew = crew(session)
        now = time.monotonic()
        self._good_until = now + max(_KEPT_SECONDS, _SHARE * (now - began))


def _place(job: Job, position: int, pace: Pace | None, crew: Crew) -> Place:
    waits_for = crew.lacks(job.gpus, job.config)
    starts_in = None if pace is None or waits_for is not None else pace.starts_in(position)
    return Place(position, starts_in, waits_for)
