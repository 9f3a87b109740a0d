"""Brings teachers' answers from the storage to the folder that a machine's jobs share, and new ones to the storage.

They only save time: whatever fails is logged, and the trainer computes them.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue

from limbeck.errors import LimbeckError
from models.retention import ANSWERS
from models.storage import Storage

_log = logging.getLogger(__name__)
_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = "answers.safetensors"
#: An object that was used is stored again at this age: `limbeck gc` takes its age for the time since its last use.
_REFRESH = timedelta(days=1)
_LAST_SECONDS = 30.0


class AnswersPorter:
    """Carries for one attempt, in a thread of its own: the thread that watches the trainer must not wait for a storage.

    Args:
        folder: of the machine's jobs; has ``{key}.safetensors``.
        aside: the attempt's own, on the same file system.
    """

    def __init__(self, storage: Storage, folder: Path, aside: Path) -> None:
        self._storage = storage
        self._folder = folder
        self._aside = aside
        self._errands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._arrived: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wanted(self, key: str) -> None:
        """The trainer has asked for these; it waits until it is told that they, or no answers, have arrived."""
        self._errands.put(lambda: self._fetch(key))

    def used(self, key: str) -> None:
        """The trainer has found these in the folder, or written them there."""
        self._errands.put(lambda: self._store(key))

    def arrived(self) -> list[str]:
        """The keys whose fetching has ended, well or not, since the last call."""
        keys = []
        while True:
            try:
                keys.append(self._arrived.get_nowait())
            except queue.Empty:
                return keys

    def finish(self, go_on: Callable[[], bool]) -> None:
        """Wait for what is under way, for as long as ``go_on`` allows and half a minute at most."""
        self._errands.put(None)
        end = time.monotonic() + _LAST_SECONDS
        while self._thread.is_alive() and time.monotonic() < end and go_on():
            self._thread.join(0.1)

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            try:
                errand()
            except (LimbeckError, OSError) as error:
                _log.warning("a teacher's answers could not be carried: %s", error)
            except Exception:  # the boundary: the trainer waits for what it asks for next
                _log.exception("a teacher's answers could not be carried")

    def _fetch(self, key: str) -> None:
        try:
            # The attempt may be over by now; getting a file would make its folder again.
            if _KEY.fullmatch(key) and self._storage.exists(_stored(key)) and self._aside.is_dir():
                part = self._aside / _NAME
                self._storage.get_file(_stored(key), part)
                self._folder.mkdir(parents=True, exist_ok=True)
                part.replace(self._path(key))
        finally:
            self._arrived.put(key)

    def _store(self, key: str) -> None:
        if not _KEY.fullmatch(key):
            return
        young = datetime.now(UTC) - _REFRESH
        if not any(entry.modified > young for entry in self._storage.list(f"{ANSWERS}/{key}")):
            self._storage.put_file(self._path(key), _stored(key))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def _stored(key: str) -> str:
    return f"{ANSWERS}/{key}/{_NAME}"
