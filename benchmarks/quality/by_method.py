"""The table of ``docs/methods.md``: what each method is worth on the three data sets that all are measured on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality import paired
from benchmarks.quality.grid import LONG, PEERS, REPLACED, UNLABELLED, WIDE, Cell, cells, teacher_of
from benchmarks.quality.seeds import finished
from benchmarks.quality.store import Store
from benchmarks.report import ROOT, markdown_table, replace_part

PAGE = ROOT / "docs" / "methods.md"
_HEAD = ("method", "layers", *(f"{name}: student, over its baseline" for name in WIDE))
_ABOUT = (
    "From the cells of [results.md](results.md), seed 0: per cent on the reported split, and the difference in points "
    "from fine-tuning alone with the same start, steps and data, paired, with its 95 % interval."
)


def write_table(store: Store, page: Path = PAGE) -> None:
    """Replace the page's generated part.

    Raises:
        ValueError: the page has no such part.
    """
    replace_part(page, "methods", table(store))


def table(store: Store) -> str:
    """A row for each method, and one for the teachers."""
    standing = {cell for cell in cells() if _stands(cell)}
    shown = dict.fromkeys((cell.method, cell.layers) for cell in cells() if cell in standing)
    rows = [
        [method, str(layers), *(_found(store, cell) if cell in standing else "" for cell in _each(method, layers))]
        for method, layers in shown
    ]
    teachers = [finished(store, teacher_of(name)) for name in WIDE]
    first = [
        "the teacher",
        "6",
        *("not run" if one is None else f"{100 * one['teacher']['value']:.1f}" for one in teachers),
    ]
    return f"{_ABOUT}\n\n{markdown_table(_HEAD, [first, *rows])}"


def _stands(cell: Cell) -> bool:
    """Whether it is of a size and length that its method is compared at, and no baseline of another start."""
    if cell.dataset not in WIDE or cell.seed or cell.is_teacher or cell.layers == 2:
        return False
    return cell.method not in {*PEERS, *LONG, *REPLACED, *UNLABELLED}


def _each(method: str, layers: int) -> list[Cell]:
    return [Cell(name, method, layers, 0) for name in WIDE]


def _found(store: Store, cell: Cell) -> str:
    found = finished(store, cell)
    if found is None:
        return "not run" if store.read(cell) is None else "failed"
    over = paired.shown(store, cell, found)
    value = f"{100 * found['student']['value']:.1f}{store.marks(cell, found)}"
    return f"{value}, {over}" if over else value
