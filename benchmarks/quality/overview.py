"""The page's first table: what fine-tuning alone, ``kd`` and ``auto`` make of every data set, a row each."""

from __future__ import annotations

from statistics import mean

from benchmarks.quality.datasets import DATASETS
from benchmarks.quality.grid import LONG, REPLACED, UNLABELLED, WIDE, Cell, cells, teacher_of
from benchmarks.quality.seeds import finished, pairs, seeds_of
from benchmarks.quality.store import Store
from benchmarks.report import markdown_table
from limbeck.evaluate import SMALLEST_GAP

#: As they are by default, and then what is otherwise than that: another start, and another weight of the labels.
_METHODS, _OTHERWISE = ("none", "kd", "auto"), ("none-uniform", "kd-uniform", "kd-soft")
_HEAD = (
    "data",
    "layers",
    "teacher",
    "alone",
    "`kd`",
    "`auto`",
    "`auto` keeps",
    "`auto` wins back",
    "from 1, 3, 5: alone",
    "`kd-uniform`",
    "`kd-soft`",
    "best of all",
)
_INTRO = (
    "In per cent; means over the seeds that are measured, whose number is in brackets where it is more than one. "
    "*Alone* is fine-tuning without a teacher, with as many steps and the same data. The first columns are as a job is "
    "by default: three layers start as 0, 2 and 4 of the teacher's six, two as 2 and 5; `kd` is at T = 3 with half of "
    "the weight on the labels. Behind them stands what other layers (1, 3 and 5) make of that, and from these "
    "`kd-soft`, at T = 4 with a tenth of the weight on the labels. *Keeps* is the share of the teacher, *wins back* "
    "that of the gap between baseline and teacher. *Best of all* is the best student of this size and as many steps, "
    "baselines included; it is chosen on the reported split, which flatters it."
)


def overview(store: Store) -> str:
    """The table, and what its columns mean."""
    sizes = [(name, layers) for name in DATASETS for layers in ((3, 2) if name in WIDE else (3,))]
    rows = [_row(store, name, layers) for name, layers in sizes]
    return f"{_INTRO}\n\n{markdown_table(_HEAD, rows)}"


def _row(store: Store, dataset: str, layers: int) -> list[str]:
    teacher = finished(store, teacher_of(dataset))
    shown = "not run" if teacher is None else f"{100 * teacher['teacher']['value']:.1f}"
    kept = [one["retention"]["value"] for one in seeds_of(store, dataset, "auto", layers).values()]
    paired = pairs(store, dataset, "auto", layers)
    won = ""
    if paired:
        gap = mean(one for _, one in paired)
        won = "– (no gap)" if gap <= SMALLEST_GAP else f"{100 * mean(one for one, _ in paired) / gap:.0f}"
    return [
        dataset,
        str(layers),
        shown,
        *(_mean(store, dataset, method, layers) for method in _METHODS),
        f"{100 * mean(kept):.1f}" if kept else "",
        won,
        *(_mean(store, dataset, method, layers) for method in _OTHERWISE),
        _best(store, dataset, layers),
    ]


def _mean(store: Store, dataset: str, method: str, layers: int) -> str:
    found = [one["student"]["value"] for one in seeds_of(store, dataset, method, layers).values()]
    if not found:
        return "not run" if Cell(dataset, method, layers, 0) in cells() else ""
    return f"{100 * mean(found):.1f}" + (f" ({len(found)})" if len(found) > 1 else "")


def _best(store: Store, dataset: str, layers: int) -> str:
    """Of the students that are measured: each method by its mean."""
    names = dict.fromkeys(one.method for one in cells() if _counts(one, dataset, layers))
    each = {
        name: [one["student"]["value"] for one in seeds_of(store, dataset, name, layers).values()] for name in names
    }
    means = {name: mean(values) for name, values in each.items() if values}
    if not means:
        return ""
    best = max(means, key=lambda name: means[name])
    return f"{100 * means[best]:.1f}, `{best}`"


def _counts(cell: Cell, dataset: str, layers: int) -> bool:
    """Whether it is a student of ours that was trained for as long as the others."""
    other = cell.is_teacher or cell.is_peer or cell.method in {*UNLABELLED, *REPLACED, *LONG}
    return not other and (cell.dataset, cell.layers) == (dataset, layers)
