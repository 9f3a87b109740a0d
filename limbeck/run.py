"""What all phases of one job share: its state on disk, its progress, its device, and the question whether to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from limbeck.callbacks import Callbacks
from limbeck.checkpoint import CheckpointStore, Follower
from limbeck.config import DistillConfig
from limbeck.device import Device
from limbeck.errors import Conflict, Interrupted, InvalidConfig
from limbeck.memory import memory_of
from limbeck.progress import Meter
from limbeck.ranks import ALONE, Ranks
from limbeck.teacher_cache import TeacherCache

JOURNAL = "journal"
_ALIVE_SECONDS = 1.0
T = TypeVar("T")


class Run:
    """One attempt at a job, going on from what earlier attempts left in ``workdir/state``."""

    def __init__(
        self,
        config: DistillConfig,
        workdir: Path,
        callbacks: Callbacks,
        checkpoint_seconds: float,
        teacher_cache: TeacherCache | None = None,
        ranks: Ranks = ALONE,
        *,
        micro_batches: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.config = config
        self.callbacks = callbacks
        self.teacher_cache = teacher_cache
        self.ranks = ranks
        self.store = self._open(workdir / "state")
        self.meter = Meter(callbacks)
        self.device = Device.choose(config.training.precision, ranks.place)
        self.memory = memory_of(self.device.torch)
        #: What an earlier run that this one repeats has found (``limbeck/batch_probe.py``).
        self.micro_batches = micro_batches
        self._interval = checkpoint_seconds
        self._saved = time.monotonic()
        self._alive = float("-inf")
        #: Small results of finished work, as JSON.
        self.facts: dict[str, Any] = {"config": config.model_dump(mode="json")}
        if self.store.damage is not None:
            self.event("checkpoint.damaged", f"The saved state cannot be used, starting over: {self.store.damage}")
        if self.store.has(JOURNAL):
            self._resume()
            self.event("checkpoint.loaded", f"Going on from step {self.store.step}.", step=self.store.step)
        ranks.wait()  # until then rank 0 must not change what the others read

    def _open(self, folder: Path) -> CheckpointStore:
        if self.ranks.leads:
            store = CheckpointStore(folder)
            self.ranks.bring(folder, store.committed)
            return store
        self.ranks.bring(folder)
        return Follower(folder)

    def _resume(self) -> None:
        found = self.store.read_json(JOURNAL)
        if not _same_run(found["facts"]["config"], self.config):
            raise Conflict("This folder holds the state of a run with another configuration; take a fresh folder.")
        self.facts = found["facts"] | {"config": self.facts["config"]}
        self.meter.restore(found["meter"])

    def first(self, work: Callable[[], T]) -> T:
        """What rank 0 finds by ``work``, on every rank; within it there are no others."""
        ranks = self.ranks

        def by_itself() -> T:
            self.ranks = ALONE
            try:
                return work()
            finally:
                self.ranks = ranks

        return ranks.first(by_itself)

    def path_everywhere(self, role: str) -> Path | None:
        """Of the file that rank 0's state has for a role, on this rank's disk; None where it has none."""
        name = self.first(lambda: self.store.path(role).name if self.store.has(role) else None)
        if name is None:
            return None
        self.ranks.bring(self.store.folder, [name], exactly=False)
        return self.store.folder / name

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do what ends in a commit on rank 0, and then on the others, which find it in the state."""
        if self.ranks.leads:
            result = work()
            self.ranks.wait()
            self.ranks.bring(self.store.folder, self.store.committed)
            self.ranks.wait()
            return result
        self.ranks.wait()
        self.store = self._open(self.store.folder)
        self._resume()
        self.ranks.wait()
        return work()

    def part(self) -> None:
        """What follows is done by rank 0 alone; on the others this does not return."""
        self.ranks = self.ranks.part()

    def poll(self) -> None:
        """Call where the state can be saved, and often: it is also what says that the run is not stuck.

        Raises:
            Interrupted: somebody wants the run to stop.
        """
        self.say_alive()
        if self.callbacks.should_stop():
            raise Interrupted("The run was asked to stop; its state is saved.")

    def say_alive(self) -> None:
        """Where the state cannot be saved, and what lies between two :meth:`poll` may take long."""
        now = time.monotonic()
        if now - self._alive >= _ALIVE_SECONDS:
            self._alive = now
            self.callbacks.on_alive()

    def save_due(self) -> bool:
        return self.ranks.leads and time.monotonic() - self._saved >= self._interval

    def save_soon(self) -> None:
        """Have :meth:`save_due` say so when it is next asked."""
        self._saved = -math.inf

    def commit(self) -> None:
        """Make everything staged in the store, and the journal, the state to go on from; rank 0 does it for all."""
        if not self.ranks.leads:
            return
        self.store.write_json(JOURNAL, {"facts": self.facts, "meter": self.meter.state()})
        info = self.store.commit(self.meter.step)
        self._saved = time.monotonic()
        self.callbacks.on_checkpoint(info)

    def event(self, kind: str, message: str, **data: Any) -> None:
        self.callbacks.on_event(kind, message, data)

    def metrics(self, values: Mapping[str, float], *, steps_ago: int = 0) -> None:
        self.callbacks.on_metrics(self.meter.step - steps_ago, values)

    def provenance(self, **facts: Any) -> None:
        """Record what makes the run repeatable, as it becomes known."""
        self.facts.setdefault("provenance", {}).update(facts)
        self.callbacks.on_provenance(facts)


def _same_run(before: Any, config: DistillConfig) -> bool:
    """Whether a journal's configuration is this one, but for the number of devices and hosts, which a run may change
    when it goes on. An earlier version's lacks the fields that are new, so that it is read as this version reads it."""
    devices: Any = {"training": {"devices", "hosts"}}
    try:
        known = DistillConfig.parse(before, stored=True)
    except InvalidConfig:
        return False
    dumps = [one.model_dump(mode="json", exclude=devices) for one in (known, config)]
    return dumps[0] == dumps[1]
