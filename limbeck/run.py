"""What all phases of one job share: its state on disk, its progress, its device, and the question whether to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.callbacks import Callbacks
from limbeck.checkpoint import CheckpointStore
from limbeck.config import DistillConfig
from limbeck.device import Device
from limbeck.errors import Conflict, Interrupted
from limbeck.progress import Meter
from limbeck.teacher_cache import TeacherCache

JOURNAL = "journal"


class Run:
    """One attempt at a job, going on from what earlier attempts left in ``workdir/state``."""

    def __init__(
        self,
        config: DistillConfig,
        workdir: Path,
        callbacks: Callbacks,
        checkpoint_seconds: float,
        teacher_cache: TeacherCache | None = None,
    ) -> None:
        self.config = config
        self.callbacks = callbacks
        self.teacher_cache = teacher_cache
        self.store = CheckpointStore(workdir / "state")
        self.meter = Meter(callbacks)
        self.device = Device.choose(config.training.precision)
        self._interval = checkpoint_seconds
        self._saved = time.monotonic()
        #: Small results of finished work, as JSON.
        self.facts: dict[str, Any] = {"config": config.model_dump(mode="json")}
        if self.store.damage is not None:
            self.event("checkpoint.damaged", f"The saved state cannot be used, starting over: {self.store.damage}")
        if self.store.has(JOURNAL):
            self._resume()

    def _resume(self) -> None:
        found = self.store.read_json(JOURNAL)
        if found["facts"]["config"] != self.facts["config"]:
            raise Conflict("This folder holds the state of a run with another configuration; take a fresh folder.")
        self.facts = found["facts"]
        self.meter.restore(found["meter"])
        self.event("checkpoint.loaded", f"Going on from step {self.store.step}.", step=self.store.step)

    def poll(self) -> None:
        """Call where the state can be saved.

        Raises:
            Interrupted: somebody wants the run to stop.
        """
        if self.callbacks.should_stop():
            raise Interrupted("The run was asked to stop; its state is saved.")

    def save_due(self) -> bool:
        return time.monotonic() - self._saved >= self._interval

    def commit(self) -> None:
        """Make everything staged in the store, and the journal, the state to go on from."""
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
