"""``docs/results.md`` from the cells that are there; what is missing is shown as such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality import paired
from benchmarks.quality.aims import aims
from benchmarks.quality.datasets import DATASETS
from benchmarks.quality.grid import Cell, cells, teacher_of
from benchmarks.quality.overview import overview
from benchmarks.quality.papers import papers
from benchmarks.quality.seeds import over_seeds
from benchmarks.quality.side_by_side import side_by_side
from benchmarks.quality.store import Store
from benchmarks.report import ROOT, markdown_table, replace_part

PAGE = ROOT / "docs" / "results.md"
HEAD = (
    "method",
    "layers",
    "teacher",
    "baseline",
    "student",
    "over the baseline",
    "retention",
    "gap recovery",
    "speed-up b1 / b32",
    "minutes",
)
#: What stands where a speed-up was measured and is no longer in the result.
_TAKEN_OUT = "taken out ¶"

_INTRO = (
    "Every row is one JSON in `benchmarks/results/quality`, measured by `python -m benchmarks.quality` and put here by "
    "its `--page`. Figures are in per cent (correlations times 100) on the reported split, with the 95 % interval by "
    "bootstrap over its examples; *over the baseline* is student − baseline in points, retention student / teacher and "
    "gap recovery (student − baseline) / (teacher − baseline), all paired. The baseline is the same student, cut from "
    "the same fine-tuned teacher, trained with as many steps without a teacher. `kd-unlabelled` learns the teacher's "
    "answers to 32,000 further texts as well; its baseline takes as many steps over the labelled ones. `none-first`, "
    "`none-uniform` and `none-skip` start from the teacher's first layers, from evenly spread ones (1, 3 and 5) and "
    "from every n-th (0, 2 and 4), the others as their methods do by default. `kd-uniform` is `kd` from layers 1, 3 "
    "and 5, `kd-soft` that at T = 4 with a tenth of the weight on the labels, `kd-t1` the same at T = 1, and "
    "`kd-unlabelled` is otherwise as `kd-soft`. What ends in `-ten` has ten epochs, in `-long` 15, as its "
    "baseline has; in `-replaced` as many steps as ten epochs have, over each text and four copies with other words, "
    "to which the teacher alone gives the answers (`mask_replace` without `keep_labels`), beside ten epochs of "
    "fine-tuning alone. Every cell of a data set shares one teacher. † marks figures of an earlier version of the "
    "method's code, ‡ a teacher other than the recorded one (one that was fine-tuned again, on another machine, and "
    "answers every reported example alike, numbers to a ten-thousandth of their range, counts as the same)."
)

_ABOUT_TAKEN = (
    "¶ marks a speed-up that is no longer there: the run had timed teacher and student, and what it found was deleted "
    "from the JSON by hand afterwards."
)


def write_page(store: Store, page: Path = PAGE) -> None:
    """Replace the page's generated part.

    Raises:
        ValueError: the page has no such part.
    """
    replace_part(page, "quality", generated(store))


def generated(store: Store) -> str:
    """All tables, over the whole grid."""
    grid = cells()
    taken = any(_speedup_taken_out(store, cell) for cell in grid)
    parts = [_INTRO + (f" {_ABOUT_TAKEN}" if taken else "")]
    parts += ["### All data sets", overview(store), "### Aims", aims(store)]
    for name, data in DATASETS.items():
        chosen = [cell for cell in grid if cell.dataset == name and not cell.is_teacher and not cell.is_peer]
        parts += [f"### {name}", _about(store, name, data.note), _table(store, chosen)]
    parts += ["### Over three seeds", over_seeds(store)]
    parts += ["### Side by side with TextBrewer", side_by_side(store)]
    parts += ["### Beside what was published", papers(store)]
    parts += ["### Early exit", _exits(store, [cell for cell in grid if cell.method == "fastbert"])]
    return "\n\n".join(part for part in parts if part)


def _about(store: Store, name: str, note: str) -> str:
    found = store.read(teacher_of(name))
    if found is None:
        return f"{note[:1].upper()}{note[1:]}. Not run." if note else "Not run."
    if "failure" in found:
        return f"The teacher failed: {found['failure']}"
    counts = found["examples"]
    text = (
        f"{found['metric'].replace('_', ' ')}; {counts['train']:,} training, {counts['validation']:,} dev and "
        f"{counts['test']:,} reported examples{'; ' + note if note else ''}. Teacher: "
        f"{_estimate(found['teacher'])}, fine-tuned in {found['total_minutes']:.1f} minutes; guessing "
        f"gets {100 * found['majority']:.1f}. {_machine(found)}."
    )
    return text[0].upper() + text[1:]


def _machine(found: dict[str, Any]) -> str:
    host = found["machine"]
    return f"{host['cores']} cores of {host['cpu']}, {host['date']}"


def _table(store: Store, chosen: Sequence[Cell]) -> str:
    rows = [_row(store, cell) for cell in sorted(chosen, key=lambda cell: (cell.layers != 3, cell.layers))]
    return markdown_table(HEAD, rows)


def _row(store: Store, cell: Cell) -> list[str]:
    method = cell.method + (f", seed {cell.seed}" if cell.seed else "")
    found = store.read(cell)
    if found is None:
        return [method, str(cell.layers), "not run", *[""] * 7]
    if "failure" in found:
        reason = " ".join(found["failure"].split()).replace("|", "\\|")
        return [method, str(cell.layers), f"failed: {reason}", *[""] * 7]
    speed = found["speedup"]
    return [
        method + store.marks(cell, found),
        str(cell.layers),
        f"{100 * found['teacher']['value']:.1f}",
        _estimate(found["baseline"]) if found["baseline"] else "",
        _estimate(found["student"]),
        paired.shown(store, cell, found),
        _estimate(found["retention"]),
        _gap(found),
        _TAKEN_OUT if speed is None else f"{speed['1']:.2f}× / {speed['32']:.2f}×",
        f"{found['total_minutes']:.1f}",
    ]


def _speedup_taken_out(store: Store, cell: Cell) -> bool:
    """Every student of ours is timed: a result without a speed-up, where nothing failed, had one."""
    found = store.read(cell)
    if found is None or "failure" in found or cell.is_teacher or cell.is_peer:
        return False
    return found["speedup"] is None


def _gap(found: dict[str, Any]) -> str:
    gap = found["gap_recovery"]
    if gap is None:
        return "– (no gap)" if found["baseline"] else ""
    return _estimate(gap) + (" *" if found["gap_note"] else "")


def _estimate(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f}–{100 * estimate['high']:.1f})"


def _exits(store: Store, chosen: Sequence[Cell]) -> str:
    parts = []
    for cell in chosen:
        found = store.read(cell)
        if found is None or "failure" in found or not found["exits"]:
            parts.append(f"`{cell.name}`: {found['failure'] if found and 'failure' in found else 'not run'}.")
            continue
        exits = found["exits"]
        rows = [_exit_row(point, exits["plain_latency"], exits["speed"]) for point in exits["curve"]]
        head = ("speed", "on the reported split", "mean layers", "FLOPs", "ms b1 (whole)", "ms b32 (whole)")
        floor, kept, whole = (100 * exits[name] for name in ("floor", "validation", "validation_whole"))
        which = "the highest that keeps" if kept >= floor - 1e-7 else "as no speed keeps"
        parts.append(
            f"`{cell.name}`: the default speed is {exits['speed']:g}, {which} {floor:.1f} on dev (it "
            f"has {kept:.1f} there, all layers {whole:.1f}).\n\n" + markdown_table(head, rows)
        )
    return "\n\n".join(parts)


def _exit_row(point: dict[str, Any], plain: Sequence[dict[str, Any]], default: float) -> list[str]:
    # Of a text, mean: texts leave at different layers, so that a median says little.
    whole = {one["batch_size"]: 1000 / one["examples_per_second"] for one in plain}
    each = {one["batch_size"]: 1000 / one["examples_per_second"] for one in point["latency"]}
    seconds = [f"{each[size]:.2f} ({whole[size]:.2f})" if size in each else "" for size in (1, 32)]
    return [
        f"{point['speed']:g}" + " (default)" * (point["speed"] == default),
        _estimate(point["metric"]),
        f"{point['mean_layers']:.2f}",
        f"{100 * point['flops']:.0f} %",
        *seconds,
    ]
