"""What was promised of the students' quality, and whether the cells that are there keep it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from benchmarks.quality.datasets import DATASETS
from benchmarks.quality.grid import CURVES, REPLACED, SEEDS, Cell, cells
from benchmarks.quality.papers import exit_points
from benchmarks.quality.seeds import pairs
from benchmarks.quality.store import Store
from benchmarks.report import markdown_table

RETENTION, RECOVERY, LOSS = 0.97, 0.5, 0.005
#: How far a baseline has to be under its teacher for the aim of gap recovery.
GAP = 0.01
_LAYERS, _DEEP = 3, 6
_MET, _MISSED, _NOT_RUN = "met", "**missed**", "not run"
_INTRO = (
    "Judged by the measured values themselves; the tables below have their intervals. Where several seeds are "
    "measured, by their means. The best method is chosen on the reported split, which flatters it."
)

Row = tuple[str, str, str]


def aims(store: Store) -> str:
    """The table of the aims."""
    rows = [*_retentions(store), *_recoveries(store), *_exits(store)]
    return f"{_INTRO}\n\n{markdown_table(('aim', 'found', ''), rows)}"


def _retentions(store: Store) -> Iterator[Row]:
    for dataset in ("sst2", "banking77"):
        aim = f"{dataset}, {_LAYERS} of {_DEEP} layers keep ≥ {100 * RETENTION:.0f} % of the teacher"
        kept = _kept(store, dataset, "auto")
        yield f"{aim}: `auto`", *_judged(kept, RETENTION)
        each = {method: kept for method in _taught(dataset) if (kept := _kept(store, dataset, method)) is not None}
        best = max(each, key=lambda method: each[method], default=None)
        if best is None:
            yield f"{aim}: the best method", "", _NOT_RUN
        else:
            yield f"{aim}: the best of {len(each)} methods, `{best}`", *_judged(each[best], RETENTION)


def _recoveries(store: Store) -> Iterator[Row]:
    grid = cells()
    aim = f"≥ {100 * RECOVERY:.0f} % of the gap won back where the baseline is more than {100 * GAP:.0f} point under"
    for method in ("auto", "kd", "auto-ten", "kd-ten", *REPLACED):
        missing = []
        for dataset in (name for name in DATASETS if Cell(name, method, _LAYERS, 0) in grid):
            paired = pairs(store, dataset, method, _LAYERS)
            if not paired:
                missing.append(dataset)
                continue
            won, gap = mean(one for one, _ in paired), mean(one for _, one in paired)
            if gap <= GAP:
                yield f"{dataset}, {aim}: `{method}`", f"the baseline is {100 * gap:.1f} points under", "does not apply"
            else:
                yield f"{dataset}, {aim}: `{method}`", *_judged(won / gap, RECOVERY)
        if missing:
            yield f"{', '.join(missing)}, the same: `{method}`", "", _NOT_RUN


def _exits(store: Store) -> Iterator[Row]:
    """Twice: at half of the layers, read off the curve by its layers alone, and at the speed that dev chose."""
    for dataset in CURVES:
        aim = f"{dataset}, `fastbert`: half of {_DEEP} layers for at most {100 * LOSS:.1f} points"
        found = store.read(Cell(dataset, "fastbert", _DEEP, 0))
        if found is None or not found.get("exits"):
            yield aim, "", "failed" if found is not None and "failure" in found else _NOT_RUN
            continue
        whole, chosen = exit_points(found)
        half = min(
            (point for point in found["exits"]["curve"] if point["mean_layers"] <= _DEEP / 2),
            key=lambda point: point["speed"],
            default=None,
        )
        named = (("the slowest speed of the curve with so few", half), ("the speed that dev chose", chosen))
        for which, point in named:
            if point is not None:
                yield f"{aim}, at {which}", *_left(whole, point)


def _left(whole: dict[str, Any], point: dict[str, Any]) -> tuple[str, str]:
    lost = whole["metric"]["value"] - point["metric"]["value"]
    met = point["mean_layers"] <= _DEEP / 2 and lost <= LOSS + 1e-9
    said = f"speed {point['speed']:g}: {point['mean_layers']:.2f} layers for {100 * lost:.1f} points"
    return said, _MET if met else _MISSED


def _kept(store: Store, dataset: str, method: str) -> float | None:
    """Mean retention over the seeds that are there."""
    each = (store.read(Cell(dataset, method, _LAYERS, seed)) for seed in SEEDS)
    found: list[dict[str, Any]] = [one for one in each if one is not None and "failure" not in one]
    return mean(one["retention"]["value"] for one in found) if found else None


def _taught(dataset: str) -> list[str]:
    """Every method of the grid that has a teacher, and is ours."""
    chosen = {cell.method: None for cell in cells() if cell.dataset == dataset and cell.layers == _LAYERS}
    others = {cell.method for cell in cells() if cell.is_baseline or cell.is_peer or cell.is_teacher}
    return [method for method in chosen if method not in {*others, "noise"}]


def _judged(value: float | None, wanted: float) -> tuple[str, str]:
    if value is None:
        return "", _NOT_RUN
    # A quotient of differences: 3 of 6 examples may come out as 0.4999999999999974.
    return f"{100 * value:.1f} %", _MET if round(value, 9) >= wanted else _MISSED
