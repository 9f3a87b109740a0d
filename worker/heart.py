"""The thread that keeps a job's lease, hears what the user wants, and hands in what the job tells."""

from __future__ import annotations

import logging
import threading
import time

from limbeck.errors import LeaseLost, StorageFull, Unavailable
from models.db import Database
from models.settings import Settings
from worker.lease import Lease, Wish, beat, record, wish
from worker.telemetry import Telemetry

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


class Heart:
    """Beats until it is stopped or the lease is lost.

    While the database is away it keeps trying. Whoever holds the lease has to let go at :attr:`deadline`, on this
    machine's monotonic clock, which lies before the moment at which the database lets somebody else claim the job.
    """

    def __init__(
        self, database: Database, lease: Lease, telemetry: Telemetry, settings: Settings, claimed_at: float
    ) -> None:
        self._database = database
        self._lease = lease
        self._telemetry = telemetry
        self._lease_seconds = settings.lease_seconds
        self._beat_seconds = settings.heartbeat_seconds
        self._stopping = threading.Event()
        self._next_beat = claimed_at + self._beat_seconds
        self._thread = threading.Thread(target=self._run, name=f"heart-{lease.job_id}", daemon=True)
        #: What the user wants, as of the last look.
        self.wish = Wish.GO_ON
        #: The database has said that the lease is gone.
        self.lost = False
        #: When the lease ends, on the monotonic clock: counted from before the request that renewed it.
        self.deadline = claimed_at + self._lease_seconds

    @property
    def holds(self) -> bool:
        """Whether the lease can still be counted on."""
        return not self.lost and time.monotonic() < self.deadline

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. One that waits for a database that is away is left to itself; its writes are fenced."""
        self._stopping.set()
        self._thread.join(self._beat_seconds)

    def _run(self) -> None:
        pause = min(_LOOK_SECONDS, self._beat_seconds / 2)
        away = False
        while not self._stopping.wait(pause) and not self.lost:
            try:
                self._look()
                away = False
            except LeaseLost as loss:
                _log.warning("%s", loss)
                self.lost = True
            except (Unavailable, StorageFull) as error:
                if not away:
                    _log.warning("%s: the job goes on while the database is away: %s", self._lease.job_id, error)
                away = True
            except Exception:  # the boundary: without a next look nobody renews the lease
                if not away:
                    _log.exception("%s: a look at its row failed, and is made again", self._lease.job_id)
                away = True

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            with self._database.session() as session:
                self.wish = beat(session, self._lease, self._lease_seconds)
            self.deadline = now + self._lease_seconds
            self._next_beat = now + self._beat_seconds
        else:
            with self._database.reading() as session:
                self.wish = wish(session, self._lease)
        self.flush()

    def flush(self) -> None:
        """Write what the job told since the last time.

        Raises:
            LeaseLost, Unavailable, StorageFull
        """
        batch = self._telemetry.take()
        if batch.empty:
            return
        try:
            with self._database.session() as session:
                record(session, self._lease, batch)
        except (Unavailable, StorageFull):
            self._telemetry.put_back(batch)
            raise
        except LeaseLost:
            raise
        except Exception:  # a piece of telemetry that the database refuses must not cost the job its end
            _log.exception("%s: what the job told could not be written and is dropped", self._lease.job_id)
