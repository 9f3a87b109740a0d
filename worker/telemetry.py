"""What a job tells, kept until the database has taken it: bounded, whatever the job tells and however long it takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.repository.telemetry import Point

MAX_EVENTS = 1_000
MAX_POINTS = 20_000
MAX_PENDING_LOG = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Note:
    """An event on its way to the database."""

    kind: str
    message: str
    data: Mapping[str, Any]


@dataclass(slots=True)
class Batch:
    """Some of what a job told; of ``stage``, ``progress`` and ``provenance`` the latest counts."""

    stage: str | None = None
    progress: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    events: list[Note] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    log: str = ""

    @property
    def empty(self) -> bool:
        return self == Batch()


class Telemetry:
    """Filled by the thread that reads the job's pipe, emptied by the one that writes to the database."""

    def __init__(self, provenance: Mapping[str, Any], log_budget: int) -> None:
        self._lock = threading.Lock()
        self._batch = Batch()
        self._provenance = dict(provenance)
        self._log_budget = log_budget
        self._log_cut = False

    def spend_log(self, characters: int) -> None:
        """Earlier attempts have used so much of the log's budget."""
        with self._lock:
            self._log_budget -= characters

    def stage(self, stage: str) -> None:
        with self._lock:
            self._batch.stage = stage
            self._append(Note("job.stage", f"Stage: {stage}", {"stage": stage}))

    def progress(self, progress: Mapping[str, Any]) -> None:
        with self._lock:
            self._batch.progress = dict(progress)

    def provenance(self, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self._provenance |= facts
            self._batch.provenance = dict(self._provenance)

    def event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        with self._lock:
            self._append(Note(kind, message, data))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            self._batch.points += [Point(series, step, value) for series, value in values.items()]
            self._bound()

    def log(self, text: str) -> None:
        """Take what the process printed, up to the budget; what is beyond it is dropped, and the log says so."""
        with self._lock:
            room = min(self._log_budget, MAX_PENDING_LOG - len(self._batch.log))
            self._batch.log += text[: max(room, 0)]
            self._log_budget -= min(len(text), max(room, 0))
            if len(text) > room and not self._log_cut:
                self._log_cut = True
                self._batch.log += "\n[The log is full; what the job prints from here on is dropped.]\n"

    def take(self) -> Batch:
        """Everything since the last time."""
        with self._lock:
            batch, self._batch = self._batch, Batch()
            return batch

    def put_back(self, batch: Batch) -> None:
        """The database did not take it; what came since goes behind it."""
        with self._lock:
            newer = self._batch
            self._batch = Batch(
                stage=newer.stage or batch.stage,
                progress=newer.progress or batch.progress,
                provenance=newer.provenance or batch.provenance,
                events=batch.events + newer.events,
                points=batch.points + newer.points,
                log=batch.log + newer.log,
            )
            self._bound()

    def _append(self, note: Note) -> None:
        self._batch.events.append(note)
        self._bound()

    def _bound(self) -> None:
        # Every other point of the past: a long absence of the database costs resolution, not the curve.
        if len(self._batch.points) > MAX_POINTS:
            self._batch.points = self._batch.points[::2]
        if len(self._batch.events) > MAX_EVENTS:
            del self._batch.events[: len(self._batch.events) - MAX_EVENTS]
