"""What the engine tells its caller while it works, and what it asks.

Progress goes out through one object, so that a notebook, the command line and the worker's pipe read the same facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Stage(StrEnum):
    """The stages of a job, in their order."""

    PREPARING = "preparing"
    TEACHER = "teacher"
    DISTILLING = "distilling"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the job is."""

    stage: Stage
    step: int  #: optimizer steps done in the whole job
    total_steps: int  #: optimizer steps planned in the whole job
    percent: float  #: 0–100 of the whole job's expected time, never falling
    examples_per_second: float | None  #: of the phase under way
    eta_seconds: float | None  #: until the job ends


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A state from which the job can go on; every file that the manifest names is complete and on disk."""

    step: int
    manifest: Path  #: ``state/manifest.json``: ``{"step": int, "files": {name: {"sha256": str, "bytes": int}}}``


class Callbacks:
    """Override what you need. No method may raise but to stop the job."""

    def on_stage(self, stage: Stage) -> None:
        """A stage begins."""

    def on_progress(self, progress: Progress) -> None:
        """Called at most twice a second."""

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of series, e.g. ``{"distilling/loss": 0.7}``. ``step`` counts within the whole job."""

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        """Something a person wants to know: ``teacher.evaluated``, ``cache.built``, ``student.exported`` …"""

    def on_checkpoint(self, checkpoint: CheckpointInfo) -> None:
        """A new state is safely on disk."""

    def on_provenance(self, facts: Mapping[str, Any]) -> None:
        """Facts that make the run repeatable, as they become known: revisions, hashes, versions, device."""

    def on_alive(self) -> None:
        """The work goes on, though there may be nothing to tell. Called between steps of every stage, at most once a
        second, and by nothing that would go on beside work that is stuck."""

    def should_stop(self) -> bool:
        """Asked between steps; True makes the engine write a checkpoint and raise ``Interrupted``."""
        return False
