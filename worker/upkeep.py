"""Keeps what a worker has taken of another one's job (``worker/claims.py``), while it is wanted and in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from limbeck.errors import LimbeckError, Unavailable
from models.db import Database
from models.settings import Settings
from worker import claims
from worker.claims import Taken
from worker.offers import LOOK_SECONDS
from worker.process import TrainerProcess

_log = logging.getLogger(__name__)


class Upkeep:
    """The lease of something that was taken just now, looked after by whoever asks :meth:`wanted` again and again.

    Args:
        beside: looks at something else of the database whenever there is a look at all.
    """

    def __init__(
        self, settings: Settings, database: Database, beside: Callable[[Session], None] = lambda session: None
    ) -> None:
        self._database = database
        self._beside = beside
        self._lease_seconds, self._beat_seconds = settings.lease_seconds, settings.heartbeat_seconds
        now = time.monotonic()
        self._next_look = self._next_beat = now
        self._deadline = self._told = now + self._lease_seconds

    @property
    def left(self) -> float:
        """Seconds until the lease is over."""
        return self._deadline - time.monotonic()

    def begin_again(self, asked_at: float) -> None:
        """Something was taken in the place of the last, by a request that was sent then, on the monotonic clock."""
        self._deadline = asked_at + self._lease_seconds

    def tell(self, process: TrainerProcess) -> None:
        """Pass a renewed lease on."""
        if self._deadline != self._told:
            self._told = self._deadline
            process.tell("lease", seconds=self.left)

    def wanted(self, taken: Taken) -> bool:
        """Whether it is still wanted, and this worker's; renews the lease. A database that is away is waited for until
        the lease is over."""
        now = time.monotonic()
        if now > self._deadline:
            return False
        if now < self._next_look:
            return True
        self._next_look = now + min(LOOK_SECONDS, self._beat_seconds / 2)
        try:
            return self._look(taken, now)
        except Unavailable:
            return True

    def _look(self, taken: Taken, now: float) -> bool:
        with self._database.reading() as session:
            wanted = claims.wanted(session, taken)
            self._beside(session)
        if wanted and now >= self._next_beat:
            with self._database.session() as session:
                wanted = claims.keep(session, taken, self._lease_seconds)
            self._next_beat = now + self._beat_seconds
            self._deadline = now + self._lease_seconds
        return wanted

    def let_go(self, taken: Taken, leave: Callable[[Session, Taken], None]) -> None:
        """Give it up, in this way."""
        try:
            with self._database.session() as session:
                leave(session, taken)
        except LimbeckError as error:  # its lease runs out
            _log.warning("what was taken of %s could not be given back: %s", taken.job_id, error)
