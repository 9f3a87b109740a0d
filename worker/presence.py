"""The thread that says which worker is connected, and what it has.

Nothing depends on it but what people are told: jobs are claimed, and leases kept, without it.
"""

from __future__ import annotations

import logging
import threading

from limbeck.errors import LimbeckError
from models.db import Database
from models.repository import crew
from models.settings import Settings
from worker.service import Worker

_log = logging.getLogger(__name__)


class Presence:
    """Says so with every heartbeat, until the worker ends or :meth:`stop` is called."""

    def __init__(self, settings: Settings, database: Database, worker: Worker) -> None:
        self._database = database
        self._worker = worker
        self._seconds, self._pause = settings.lease_seconds, settings.heartbeat_seconds
        self._stopping = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The worker takes no more jobs. Where the database is away just now, the row runs out."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._pause)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._say()
            self._stopping.wait(self._pause)
        try:
            with self._database.session() as session:
                crew.say_gone(session, self._worker.holder.worker)
        except LimbeckError as error:
            _log.warning("the worker could not take its leave: %s", error)

    def _say(self) -> None:
        try:
            with self._database.session() as session:
                crew.say_present(session, self._worker.holder.worker, self._worker.slots.gpus, self._seconds)
            self._away = False
        except LimbeckError as error:
            if not self._away:
                _log.warning("the worker cannot say that it is there just now: %s", error)
            self._away = True
        except Exception:  # the boundary: the next beat has to come
            _log.exception("the worker could not say that it is there")
