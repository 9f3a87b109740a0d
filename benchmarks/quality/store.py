"""Finished cells: one small JSON each, committed, so that whoever comes later goes on from there."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.quality.grid import Cell, content_key, method_version, teacher_of
from benchmarks.report import RESULTS

FOLDER = RESULTS / "quality"
#: Minutes for a unit of :meth:`Cell.cost` where nothing was measured yet: two cores that nobody else uses.
_MINUTES = 1.8

State = Literal["done", "earlier code", "failed", "not run"]


@dataclass(frozen=True)
class Store:
    """The results in one folder.

    A cell counts as measured when its configuration and its data are still those of its result. Where only the method's
    code changed since then, it is ``earlier code``: shown with a mark, and measured again when asked.
    """

    folder: Path = FOLDER

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name.replace('/', '--')}.json"

    def read(self, cell: Cell, data: str | None = None) -> dict[str, Any] | None:
        """A cell's result; where ``data`` (the data's hash) is given, only one of that configuration and data."""
        path = self.path(cell)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found if found["key"] == content_key(cell, data or found["data"]) else None

    def state(self, cell: Cell, data: str | None = None) -> State:
        found = self.read(cell, data)
        if found is None:
            return "not run"
        if "failure" in found:
            return "failed"
        return "done" if found["method_version"] == method_version(cell.method) else "earlier code"

    def write(self, cell: Cell, data: str, found: dict[str, Any]) -> None:
        """Put a result in its place, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {
            "cell": cell.name,
            "key": content_key(cell, data),
            "data": data,
            "method_version": method_version(cell.method),
        }
        self._put(cell, {**head, **found})

    def marks(self, cell: Cell, found: dict[str, Any]) -> str:
        """What a page puts behind a student's figures: † of an earlier version's code, ‡ of another teacher than the
        one on record."""
        teacher = self.read(teacher_of(cell.dataset))
        other = teacher is not None and not is_of(teacher, found["teacher_sha256"]) and cell.method != "self"
        return "†" * (self.state(cell) == "earlier code") + "‡" * other

    def write_teacher(self, cell: Cell, data: str, found: dict[str, Any]) -> None:
        """Record a teacher, or, where the one on record gives the very same answers, that this one is alike."""
        known = self.read(cell, data)
        if known is None or "failure" in known or not _alike(*(unpacked(one["predictions"]) for one in (known, found))):
            self.write(cell, data, found)
        elif not is_of(known, found["sha256"]):
            self._put(cell, {**known, "alike": [*known.get("alike", ()), found["sha256"]]})

    def amend(self, cell: Cell, **more: Any) -> None:
        """Add what was not recorded with a result; what it says already stays, its method's version too."""
        found = json.loads(self.path(cell).read_text())
        self._put(cell, found | {name: value for name, value in more.items() if name not in found})

    def _put(self, cell: Cell, document: dict[str, Any]) -> None:
        path = self.path(cell)
        aside = path.with_suffix(f".{os.getpid()}.partial")
        aside.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        aside.replace(path)

    def minutes_per_cost(self, cells: Iterable[Cell]) -> float:
        """What a unit of work took in the cells that are done."""
        rates = [
            found["total_minutes"] / cell.cost()
            for cell in cells
            if (found := self.read(cell)) is not None and "total_minutes" in found and "failure" not in found
        ]
        return median(rates) if rates else _MINUTES


def is_of(teacher: dict[str, Any], sha256: str) -> bool:
    """Whether these are the weights of the teacher on record, or of one that answers every reported example alike."""
    return sha256 in (teacher.get("sha256"), *teacher.get("alike", ()))


def _alike(known: list[Any], found: list[Any]) -> bool:
    """Whether these are the same answers; of numbers, to a ten-thousandth of what lies between the lowest and the
    highest, as another processor's last bits are in each of them."""
    if not all(isinstance(one, float) for one in (*known, *found)):
        return known == found
    near = (max(known) - min(known)) / 10_000
    return len(known) == len(found) and all(abs(a - b) <= near for a, b in zip(known, found, strict=True))


def packed(predictions: list[Any]) -> str:
    """Predictions in little room; a baseline's are needed for the interval of what a later session measures."""
    return base64.b85encode(zlib.compress(json.dumps(predictions, ensure_ascii=False).encode(), 9)).decode()


def unpacked(text: str) -> list[Any]:
    found: list[Any] = json.loads(zlib.decompress(base64.b85decode(text)))
    return found
