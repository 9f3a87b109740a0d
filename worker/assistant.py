"""Spends a slot that has no job on another job's teacher pass: fetches what it takes, runs ``worker/answerer.py``, and
brings the parts to the storage.

Help may end at any moment, in any way: its parts are then computed by somebody else. It ends when a job waits, when the
worker has to end, and when the job that it is for is cancelled, paused, done or lost.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from limbeck.errors import Interrupted, LimbeckError, NotFound, Unavailable
from limbeck.machine import likeness
from limbeck.offer import Part
from models.db import Database
from models.settings import Settings
from models.storage import Storage
from worker import claims, materials, parts
from worker.lease import Holder
from worker.offers import stored_part
from worker.parts import PartClaim
from worker.patience import Patience
from worker.process import TrainerProcess
from worker.runner import Shutdown
from worker.scratch import child_environment, scratch
from worker.slots import Place
from worker.trainer import ORDER
from worker.upkeep import Upkeep

_log = logging.getLogger(__name__)
ANSWERER = (sys.executable, "-m", "worker.answerer")
_TICK = 0.2
_STOP_SECONDS = 2.0
#: Looks at which a job waits before help makes room for it: at the first one, another slot may be about to take it.
_PATIENCE = 2
_TRIES = 3
_LOG_CHARACTERS = 2000


@dataclass(slots=True)
class Assistant:
    """Helps with whatever its worker may help with.

    Args:
        command: the process' program, for tests that need another one.
    """

    settings: Settings
    database: Database
    storage: Storage
    shutdown: Shutdown
    holder: Holder
    command: Sequence[str] = ANSWERER
    _likeness: str = field(init=False, default_factory=likeness)
    #: Passes that it could not help with.
    _tried: set[str] = field(init=False, default_factory=set)

    def claim(self, session: Session, threads: int, of: PartClaim | None = None) -> PartClaim | None:
        """A part that this worker could compute with so many threads."""
        return parts.claim(
            session,
            self.holder,
            likeness=self._likeness,
            threads=threads,
            lease_seconds=self.settings.lease_seconds,
            without=self._tried,
            of=of,
        )

    def run(self, claimed: PartClaim, place: Place) -> None:
        """Compute this part, and further ones of its pass while nothing else is to be done."""
        _log.info("helps %s with part %s", claimed.job_id, claimed.part.name)
        visit = _Visit(self, claimed, place)
        try:
            visit.run()
        except (LimbeckError, OSError) as error:
            _log.warning("help for %s ends: %s", claimed.job_id, error)
            visit.failed = not isinstance(error, (Unavailable, Interrupted))
        except Exception:  # the boundary: help must not cost the worker its slot
            _log.exception("help for %s broke", claimed.job_id)
            visit.failed = True
        if visit.failed:
            self._tried.add(claimed.key)
        visit.let_go()
        _log.info("helped %s with %d part(s)", claimed.job_id, visit.brought)


class _Visit:
    """One process' time with one pass."""

    def __init__(self, assistant: Assistant, claimed: PartClaim, place: Place) -> None:
        settings = assistant.settings
        assert settings.scratch_dir is not None
        self._assistant = assistant
        self._settings, self._database, self._storage = settings, assistant.database, assistant.storage
        self._held: PartClaim | None = claimed
        self._pass = claimed
        self._place = place
        self._folder = settings.scratch_dir / f"{claimed.job_id}-help-{uuid.uuid4().hex}"
        self._work = self._folder / "work"
        self._finished: list[Part] = []
        self._log = ""
        self._waited = 0
        self._upkeep = Upkeep(settings, self._database, self._see_who_waits)
        #: The process gave up, or what it needs cannot be had: nothing that another try would change.
        self.failed = False
        self.brought = 0

    def run(self) -> None:
        """Until there is no reason to go on.

        Raises:
            LimbeckError, OSError
        """
        with scratch(self._folder):
            order = self._prepare()
            (self._work / ORDER).write_text(json.dumps(order), encoding="utf-8")
            threads = {name: str(self._pass.threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
            environment = child_environment(self._settings, self._place, self._folder) | threads
            process = TrainerProcess(self._assistant.command, self._work, environment, self._hear, self._print)
            try:
                self._watch(process)
            finally:
                process.finish()

    def _prepare(self) -> dict[str, Any]:
        """Fetch what the process needs; its order.

        Raises:
            Interrupted: nobody wants it any more.
            NotFound: the job's checkpoint moves faster than it can be fetched.
        """
        state = self._work / "state"
        state.mkdir(parents=True)
        patiently = Patience(self._settings.lease_seconds, self._require_wanted)
        for _ in range(_TRIES):
            with self._database.reading() as session:
                found = parts.checkpoint_for(session, self._pass)
            if found is None:
                continue
            config, checkpoint = found
            damage = materials.fetch_checkpoint(self._storage, checkpoint, state, patiently)
            if damage is None:
                sources = self._fetch_sources(config, patiently)
                return {
                    "config": config,
                    "sources": {reference: str(folder) for reference, folder in sources.items()},
                    "teacher": self._pass.teacher,
                    "key": self._pass.key,
                    "worker": self._assistant.holder.worker,
                    "lease_seconds": self._upkeep.left,
                }
        raise NotFound(f"The checkpoint of {self._pass.job_id} could not be fetched.")

    def _fetch_sources(self, config: dict[str, Any], patiently: Patience) -> dict[str, Path]:
        """The models that the config names; the texts are in the state."""
        sources, needed = materials.sources_of(config, self._database, self._folder / "sources", texts=False)
        materials.fetch(self._storage, needed, patiently)
        return sources

    def _require_wanted(self) -> None:
        if not self._may_go_on():
            raise Interrupted("It is not wanted any more.")

    def _watch(self, process: TrainerProcess) -> None:
        self._tell(process)
        kill_at = None
        while process.pump(_TICK):
            now = time.monotonic()
            while self._finished:
                self._bring(self._finished.pop(0))
                self._tell(process)
            self._upkeep.tell(process)
            if kill_at is None and not self._may_go_on():
                process.ask_to_stop()
                kill_at = now + _STOP_SECONDS
            if kill_at is not None and now > kill_at:
                return
        if kill_at is None:
            _log.warning("the process that helped %s has ended by itself; it printed: %s", self._pass.job_id, self._log)
            self.failed = True

    def _tell(self, process: TrainerProcess) -> None:
        if self._held is not None:
            process.tell("part", first=self._held.part.first, end=self._held.part.end)

    def _hear(self, line: dict[str, Any]) -> None:
        match line:
            case {"type": "part", "first": int(first), "end": int(end)}:
                self._finished.append(Part(first, end))
            case {"type": "error", "message": str(message)}:
                _log.warning("cannot help %s: %s", self._pass.job_id, message)

    def _print(self, text: str) -> None:
        self._log = (self._log + text)[-_LOG_CHARACTERS:]

    def _bring(self, part: Part) -> None:
        """Store a part, and claim the next one."""
        assert self._held is not None
        self._storage.put_file(self._work / part.name, stored_part(self._pass.key, part), move=True)
        self.brought += 1
        asked_at = time.monotonic()
        with self._database.session() as session:
            claims.finish(session, self._held)
            self._held = self._assistant.claim(session, self._pass.threads, of=self._pass)
        self._upkeep.begin_again(asked_at)

    def _may_go_on(self) -> bool:
        """Whether there is a part to compute and nothing better to do."""
        if self._held is None or self._assistant.shutdown.wanted.is_set():
            return False
        return self._upkeep.wanted(self._held) and self._waited < _PATIENCE

    def _see_who_waits(self, session: Session) -> None:
        self._waited = self._waited + 1 if parts.job_waits(session) else 0

    def let_go(self) -> None:
        """Let others have the part that was not finished."""
        if self._held is not None:
            self._upkeep.let_go(self._held, claims.give_back)
