"""The worker as one object: it takes due jobs while it has slots, else lends its host to others or helps with
them, and ends when it is told to."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from limbeck.errors import StorageFull, Unavailable
from models.db import Database
from models.settings import Settings
from models.storage import Storage
from worker import lease
from worker.assistant import ANSWERER, Assistant
from worker.lease import Claim, Holder
from worker.lender import LENT, Lender
from worker.parts import PartClaim
from worker.places import PlaceClaim
from worker.queue import Bell
from worker.runner import TRAINER, Runner, Shutdown
from worker.slots import Slots

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Work:
    """What a slot is spent on."""

    claimed: Claim | PlaceClaim | PartClaim


class Worker:
    """Claims and runs jobs in the threads that call :meth:`drain`.

    Args:
        command: the trainer's, for tests that need another one.
        answerer: likewise, of the process that helps.
        lent: likewise, of the one that lends this host.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        bell: Bell,
        slots: Slots,
        command: Sequence[str] = TRAINER,
        answerer: Sequence[str] = ANSWERER,
        lent: Sequence[str] = LENT,
    ) -> None:
        self.slots = slots
        self.shutdown = Shutdown()
        #: Set when an attempt has ended: its job may be due again soon, and the reconciler looks when.
        self.attempted = threading.Event()
        self._settings = settings
        self._database = database
        self._bell = bell
        self._helpers: list[threading.Thread] = []
        host = socket.gethostname()
        self.holder = Holder(f"{host}:{os.getpid()}:{uuid.uuid4().hex[:8]}", host, os.getpid())
        self._runner = Runner(settings, database, storage, self.shutdown, command, bell.ring)
        self._assistant = Assistant(settings, database, storage, self.shutdown, self.holder, answerer)
        self._lender = Lender(settings, database, storage, self.shutdown, self.holder, lent)

    def drain(self) -> None:
        """Run due jobs, one after the other, until there are none, or no slot, or the worker ends; between them help
        with the jobs of others."""
        try:
            while not self.shutdown.wanted.is_set() and self._run_one():
                pass
        except (Unavailable, StorageFull) as error:  # the reconciler rings again once the database answers
            _log.warning("no job could be claimed: %s", error)

    def drain_in_background(self) -> None:
        """Drain without a bell, where the broker does not deliver."""
        helper = threading.Thread(target=self.drain, name="drain", daemon=True)
        self._helpers = [*(thread for thread in self._helpers if thread.is_alive()), helper]
        helper.start()

    def join(self) -> None:
        """After :meth:`stop`: wait for the jobs that run without Celery's pool."""
        for helper in self._helpers:
            helper.join()

    def stop(self) -> None:
        """Let go of everything: in order when called first, in a hurry when called again. Safe in a signal handler."""
        self.shutdown.ask()

    def _place(self, session: Session, free: int) -> PlaceClaim | None:
        """A training to which this host is lent; none while free GPUs wait for others that the next job needs."""
        if not self.slots.gpus:
            return self._lender.claim(session, None, self.slots.cpu_threads)
        if lease.one_waits(session, self.slots.gpus):
            return None
        return self._lender.claim(session, free, self.slots.cpu_threads)

    def _run_one(self) -> bool:
        asked_at = 0.0

        def claim(gpus: int) -> _Work | None:
            nonlocal asked_at
            asked_at = time.monotonic()
            with self._database.session() as session:
                seconds = self._settings.lease_seconds
                job = lease.claim(session, self.holder, lease_seconds=seconds, gpus=gpus, most=self.slots.gpus)
                # A training that waits for hosts waits now; a teacher's pass goes on by itself.
                found = job or self._place(session, gpus) or self._assistant.claim(session, self.slots.cpu_threads)
            return None if found is None else _Work(found)

        with self.slots.take(claim, lambda work: work.claimed.devices) as taken:
            if taken is None:
                return False
            # One bell woke one slot; there may be work for the next one too.
            self._bell.ring()
            claimed, place = taken[0].claimed, taken[1]
            if isinstance(claimed, PartClaim):
                self._assistant.run(claimed, place)
            elif isinstance(claimed, PlaceClaim):
                self._lender.run(claimed, place)
            else:
                _log.info("%s: attempt %d of %d", claimed.job.id, claimed.job.attempt, claimed.job.max_attempts)
                self._runner.run(claimed, place, asked_at)
                self.attempted.set()
        return True
