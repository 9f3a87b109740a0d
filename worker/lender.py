"""Spends slots that have no job on another worker's training over several hosts: fetches the models that it names, and
runs ``worker/lent.py``, whose children are some of the training's ranks.

A host that is lent may go at any moment, in any way: the training then goes on from its last checkpoint with the hosts
that are left. It is busy until the training is done with it, is stopped or lost, or its own worker has to end.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from limbeck.errors import Conflict, Interrupted, LimbeckError, Unavailable
from models.db import Database
from models.settings import Settings
from models.storage import Storage
from worker import claims, materials, places
from worker.invitations import own_address
from worker.lease import Holder
from worker.patience import Patience
from worker.places import PlaceClaim
from worker.process import TrainerProcess
from worker.runner import Shutdown
from worker.scratch import child_environment, scratch
from worker.slots import Place
from worker.trainer import EXIT_INTERRUPTED, EXIT_LEASE_OVER, ORDER
from worker.upkeep import Upkeep

_log = logging.getLogger(__name__)
LENT = (sys.executable, "-m", "worker.lent")
#: Exit codes of a process that was let go, was to stop, or whose worker stood still.
_IN_ORDER = (0, EXIT_INTERRUPTED, EXIT_LEASE_OVER)
_TICK = 0.2
_LOG_CHARACTERS = 4000


@dataclass(slots=True)
class Lender:
    """Lends its worker's slots to whatever training wants them.

    Args:
        command: the process' program, for tests that need another one.
    """

    settings: Settings
    database: Database
    storage: Storage
    shutdown: Shutdown
    holder: Holder
    command: Sequence[str] = LENT
    #: Jobs that it could not help.
    _tried: set[str] = field(init=False, default_factory=set)
    #: Jobs for which its process has ended without a word: once may be anybody's bad luck.
    _crashed: set[str] = field(init=False, default_factory=set)
    #: Secrets of trainings to which there is no way from here; another worker may have one.
    _unreached: set[str] = field(init=False, default_factory=set)
    #: Ranks that are lent open ports too.
    _may: bool = field(init=False)

    def __post_init__(self) -> None:
        self._may = own_address(self.settings) is not None

    def claim(self, session: Session, gpus: int | None, threads: int) -> PlaceClaim | None:
        """A place that this worker could fill with so many free GPUs; None: it computes on its cores, with so many
        threads."""
        if not self._may:
            return None
        return places.claim(
            session,
            self.holder,
            kind=places.kind_of_host(gpus=gpus is not None),
            gpus=gpus,
            threads=threads,
            lease_seconds=self.settings.lease_seconds,
            without=self._tried,
            unreached=self._unreached,
        )

    def run(self, claimed: PlaceClaim, place: Place) -> None:
        """Lend these slots until they are not wanted any more."""
        _log.info("lends its host to %s", claimed.job_id)
        loan = _Loan(self, claimed, place)
        try:
            loan.run()
        except (LimbeckError, OSError) as error:
            _log.warning("the host that was lent to %s is taken back: %s", claimed.job_id, error)
            loan.failed = not isinstance(error, (Unavailable, Interrupted))
        except Exception:  # the boundary: a loan must not cost the worker its slot
            _log.exception("the host that was lent to %s is taken back", claimed.job_id)
            loan.failed = True
        if loan.crashed:
            loan.failed = claimed.job_id in self._crashed
            self._crashed.add(claimed.job_id)
        if loan.failed:
            self._tried.add(claimed.job_id)
        if loan.unreached:
            self._unreached.add(claimed.invitation.secret)
        loan.let_go()
        _log.info("%s has no host of this worker any more", claimed.job_id)


class _Loan:
    """One process' time with one training."""

    def __init__(self, lender: Lender, claimed: PlaceClaim, place: Place) -> None:
        assert lender.settings.scratch_dir is not None
        self._lender = lender
        self._settings, self._database, self._storage = lender.settings, lender.database, lender.storage
        self._claimed = claimed
        self._place = place
        self._folder = lender.settings.scratch_dir / f"{claimed.job_id}-lent-{uuid.uuid4().hex}"
        self._work = self._folder / "work"
        self._log = ""
        self._upkeep = Upkeep(self._settings, self._database)
        self._joined = False
        self._turned_away = False  #: the training wanted no more hosts
        self._said = False  #: why it ends
        self.unreached = False  #: there is no way to the training from here
        self.crashed = False  #: the process ended without a word
        #: A rank of it could not go on, or what it needs cannot be had: nothing that another try would change.
        self.failed = False

    def run(self) -> None:
        """Until there is no reason to go on.

        Raises:
            LimbeckError, OSError
        """
        with scratch(self._folder):
            (self._work / "state").mkdir(parents=True)
            (self._work / ORDER).write_text(json.dumps(self._prepare()), encoding="utf-8")
            environment = child_environment(self._settings, self._place, self._folder) | self._threads()
            process = TrainerProcess(self._lender.command, self._work, environment, self._hear, self._print)
            alone = False
            try:
                alone = self._watch(process)
            finally:
                code = process.finish()
            if alone and not self._said and code not in _IN_ORDER:
                ended = "the process that lent this host to %s ended with code %d and gave no reason; it printed: %s"
                _log.warning(ended, self._claimed.job_id, code, self._log)
                self.crashed = True

    def _prepare(self) -> dict[str, Any]:
        """Fetch the models that the config names; the texts and all else come from the host that leads.

        Raises:
            Interrupted: the place is not wanted any more.
        """
        patiently = Patience(self._settings.lease_seconds, self._require_wanted)
        with self._database.reading() as session:
            config = places.config_of(session, self._claimed)
        if config is None:
            raise Interrupted("The job is no more.")
        sources, needed = materials.sources_of(config, self._database, self._folder / "sources", texts=False)
        materials.fetch(self._storage, needed, patiently)
        return {
            "sources": {reference: str(folder) for reference, folder in sources.items()},
            "worker": self._lender.holder.worker,
            "lease_seconds": self._upkeep.left,
        }

    def _threads(self) -> dict[str, str]:
        """As many as the ranks of the host that leads have: the norm of a gradient is a sum."""
        if self._place.gpus:
            return {}
        return dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(self._claimed.invitation.threads))

    def _require_wanted(self) -> None:
        if not self._upkeep.wanted(self._claimed) or self._lender.shutdown.wanted.is_set():
            raise Interrupted("The place is not wanted any more.")

    def _watch(self, process: TrainerProcess) -> bool:
        """Until it ends by itself, which is told, or there is no reason to go on."""
        process.tell("invitation", invitation=asdict(self._claimed.invitation))
        kill_at = float("inf")
        while process.pump(_TICK):
            now = time.monotonic()
            self._upkeep.tell(process)
            if not self._upkeep.wanted(self._claimed):
                return False
            if self._lender.shutdown.wanted.is_set() and kill_at == float("inf"):
                # The one that leads saves the training's state first, and then lets this host go.
                process.ask_to_stop()
                kill_at = now + self._settings.grace_seconds
            if now > kill_at or self._lender.shutdown.hurry.is_set():
                return False
        if self._log and kill_at == float("inf"):
            _log.info("the ranks that this host lent to %s printed: %s", self._claimed.job_id, self._log)
        return True

    def _hear(self, line: dict[str, Any]) -> None:
        match line:
            case {"type": "joined"}:
                self._joined = True
            case {"type": "error", "code": code, "message": str(message)}:
                _log.warning("this host could not be lent to %s: %s", self._claimed.job_id, message)
                self._said = True
                self._turned_away = code == Conflict.code and not self._joined
                self.unreached = code == Unavailable.code and not self._joined
                self.failed = not (self._turned_away or self.unreached)

    def _print(self, text: str) -> None:
        self._log = (self._log + text)[-_LOG_CHARACTERS:]

    def let_go(self) -> None:
        """Leave the place: to others, where this host has not come to the training yet. A second one of a worker that
        is there already has its name, so that the training does not withdraw it: it would be tried on and on."""
        there = self._joined or self._turned_away
        self._upkeep.let_go(self._claimed, claims.finish if there else claims.give_back)
