"""Places in the queue for clients that ask often: worked out for all jobs at once, and kept for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from sqlalchemy.orm import Session

from models.job import Job, JobStatus
from models.repository import jobs, overview

_KEPT_SECONDS = 0.25
#: Working them out takes at most one part in so many of a process's time, however long the queue is.
_SHARE = 20


class Places:
    """The queue's order as it was a moment ago. A job that is newer than that is looked up by itself."""

    def __init__(self) -> None:
        self._places: Mapping[str, int] = {}
        self._good_until = 0.0
        self._working = threading.Lock()

    def of(self, session: Session, job: Job) -> int | None:
        """1 for the job that is next; None for one that does not wait."""
        if job.status is not JobStatus.QUEUED:
            return None
        if time.monotonic() >= self._good_until and self._working.acquire(blocking=False):
            try:
                self._work_out(session)
            finally:
                self._working.release()
        return self._places.get(job.id) or jobs.queue_position(session, job)

    def _work_out(self, session: Session) -> None:
        began = time.monotonic()
        self._places = overview.queue_positions(session)
        now = time.monotonic()
        self._good_until = now + max(_KEPT_SECONDS, _SHARE * (now - began))
