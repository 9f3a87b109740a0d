"""Our students beside TextBrewer's, of the same teacher, start, data, steps and seed."""

from __future__ import annotations

from typing import Any

from benchmarks.differences import paired_difference
from benchmarks.quality.grid import SEEDS, WIDE, Cell, teacher_of
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
    "95 % interval of the paired bootstrap; ours reaches theirs where that interval does not lie below 0."
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
        teacher = store.read(teacher_of(cell.dataset), theirs["data"]) or {}
        pair = {ours["teacher_sha256"], theirs["teacher_sha256"]}
        if len(pair) > 1 and not all(is_of(teacher, one) for one in pair):
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


def _percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f}"
