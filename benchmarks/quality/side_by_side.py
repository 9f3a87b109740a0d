"""Our students beside TextBrewer's, of the same teacher, start, data, steps and seed."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.differences import paired_difference
from benchmarks.quality.grid import SEEDS, WIDE, Cell, teacher_of
from benchmarks.quality.seeds import finished, interval
from benchmarks.quality.store import Store, is_of, unpacked
from benchmarks.report import markdown_table

#: Each of theirs, and ours that answer to it.
RIVALS = {"textbrewer-kd": ("kd", "auto"), "textbrewer-kd-hidden": ("patient", "tinybert", "auto")}
_HEAD = ("data", "seed", "TextBrewer 0.2.1", "its student", "ours", "our student", "ours above it by", "reached")

_INTRO = (
    "TextBrewer's `GeneralDistiller` in its own environment: T = 3, α = 0.5, our start, schedule and clipping, AdamW, "
    "dev selects the epoch. `textbrewer-kd` minimises what `kd` does: `benchmarks.training` checks that both have "
    "equal losses over the first steps. `textbrewer-kd-hidden` adds the mean squared errors of the embeddings and of "
    "every layer (the student's three with the teacher's second, fourth and sixth), each with weight 1, as its "
    "examples do; ours match other things: `patient` the first token's directions, `tinybert` attention scores and "
    "states before the answers, `auto` relations and states beside the answers. The difference is in points, with the "
    "95 % interval of the paired bootstrap, or, over several seeds, the mean ± half of Student's interval; ours "
    "reaches theirs where the interval does not lie below 0."
)


def side_by_side(store: Store) -> str:
    """The table of every peer's cell that is there, and which are not."""
    rows, missing = [], []
    for dataset in WIDE:
        for peer in RIVALS:
            for seed in SEEDS:
                cell = Cell(dataset, peer, 3, seed)
                found = store.read(cell)
                if found is None or "failure" in found:
                    missing.append(f"`{cell.name}`")
                    continue
                rows += _rows(store, cell, found)
            rows += [row for method in RIVALS[peer] if (row := _over_seeds(store, dataset, peer, method))]
    left = f"\n\nNot run yet: {', '.join(missing)}." if missing else ""
    return _INTRO + ("\n\n" + markdown_table(_HEAD, rows) if rows else "") + left


def _rows(store: Store, cell: Cell, theirs: dict[str, Any]) -> list[list[str]]:
    rows = []
    for method in RIVALS[cell.method]:
        name = [cell.dataset, str(cell.seed), cell.method, _percent(theirs["student"]), method]
        rival = Cell(cell.dataset, method, cell.layers, cell.seed)
        ours = store.read(rival, theirs["data"])
        if ours is None or "failure" in ours:
            if cell.seed == 0 or method in ("kd", "auto"):  # the others were never meant to have more seeds
                rows.append([*name, "not run", "", ""])
            continue
        if not _of_one_teacher(store, cell, ours, theirs):
            rows.append([*name, _percent(ours["student"]), "of another teacher", ""])
            continue
        apart = paired_difference(
            theirs["metric"],
            ours=unpacked(ours["predictions"]),
            theirs=unpacked(theirs["predictions"]),
            truth=unpacked(theirs["truth"]),
            seed=cell.seed,
        )
        value, low, high = (100 * apart[part] for part in ("value", "low", "high"))
        shown = f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append([*name, _percent(ours["student"]), shown, "yes" if high >= 0 else "**no**"])
    return rows


def _of_one_teacher(store: Store, cell: Cell, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    teacher = store.read(teacher_of(cell.dataset), theirs["data"]) or {}
    pair = {ours["teacher_sha256"], theirs["teacher_sha256"]}
    return len(pair) == 1 or all(is_of(teacher, one) for one in pair)


def _over_seeds(store: Store, dataset: str, peer: str, method: str) -> list[str] | None:
    """The means of the seeds that both have, where these are several: what is within every seed's interval may be the
    same in each."""
    both = []
    for seed in SEEDS:
        cells = Cell(dataset, method, 3, seed), Cell(dataset, peer, 3, seed)
        ours, theirs = (finished(store, one) for one in cells)
        if ours is not None and theirs is not None and _of_one_teacher(store, cells[1], ours, theirs):
            both.append((100 * ours["student"]["value"], 100 * theirs["student"]["value"]))
    if len(both) < 2:
        return None
    value, half = interval([one - other for one, other in both])
    our_mean, their_mean = (f"{mean(column):.1f}" for column in zip(*both, strict=True))
    reached = "yes" if value + half >= 0 else "**no**"
    return [dataset, f"all {len(both)}", peer, their_mean, method, our_mean, f"{value:+.1f} ± {half:.1f}", reached]


def _percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f}"
