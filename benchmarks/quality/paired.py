"""A student against its baseline on the same examples.

Computed from the recorded answers and, in the teacher's result, the truth that they are judged by: nothing that a page
says of a difference needs the machine that measured it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from benchmarks.differences import paired_difference
from benchmarks.quality.grid import Cell, teacher_of
from benchmarks.quality.store import Store, packed, unpacked
from limbeck import evaluate

if TYPE_CHECKING:
    from benchmarks.quality.running import Bench

Difference = dict[str, float]


def from_baseline(store: Store, cell: Cell, found: dict[str, Any]) -> Difference | None:
    """``student - baseline`` in the metric with its 95 % interval, paired; None where there is no baseline or its
    answers were not kept."""
    if found.get("difference") is not None:  # of a baseline that the cell's own job trained
        difference: Difference = found["difference"]
        return difference
    if cell.baseline is None or found["baseline"] is None:
        return None
    baseline, teacher = store.read(cell.baseline, found["data"]), store.read(teacher_of(cell.dataset), found["data"])
    if baseline is None or baseline.get("student") != found["baseline"]:  # measured again since then
        return None
    if teacher is None or "truth" not in teacher or "predictions" not in found:
        return None
    return paired_difference(
        found["metric"],
        ours=unpacked(found["predictions"]),
        theirs=unpacked(baseline["predictions"]),
        truth=unpacked(teacher["truth"]),
        seed=cell.seed,
    )


def shown(store: Store, cell: Cell, found: dict[str, Any]) -> str:
    """The difference in points, as a page has it."""
    if found["baseline"] is None:
        return ""
    apart = from_baseline(store, cell, found)
    if apart is None:
        return f"{100 * (found['student']['value'] - found['baseline']['value']):+.1f} (no interval)"
    value, low, high = (100 * apart[part] for part in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def add_truths(bench: Bench, datasets: Iterable[str]) -> None:
    """Put the truth into the results of teachers that were measured before it was recorded, from the cache's folder.

    Raises:
        ValueError: the teacher's answers do not get the recorded figure by it.
    """
    for teacher in map(teacher_of, datasets):
        found = bench.store.read(teacher)
        if found is None or "predictions" not in found or "truth" in found:
            continue
        path = bench.teacher_folder(teacher) / "truth.json"
        if not path.exists():
            continue
        truth = json.loads(path.read_text())
        again = evaluate.score(found["metric"], unpacked(found["predictions"]), truth)
        if not math.isclose(again, found["teacher"]["value"], abs_tol=1e-6):
            raise ValueError(f"{path} is not what {teacher.name} was judged by: {again} instead of {found['teacher']}")
        bench.store.amend(teacher, truth=packed(truth))
        print(f"[{teacher.name}] the truth added, from {path}", file=sys.stderr)
