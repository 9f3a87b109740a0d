"""``python -m benchmarks.quality``: measure the grid's cells that are missing, in order, each once.

A finished cell is a JSON in ``benchmarks/results/quality``; commit them, and a later run goes on from there. Models and
data are kept in ``benchmarks/.cache``; without it the teachers are trained again. The data is read from
``LIMBECK_TEST_DATA``; a run that finds none says so and measures nothing.

The command may run several times at once, each with ``OMP_NUM_THREADS=1`` say: they share the cells out among them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.peers.venv import PeersUnavailable
from benchmarks.quality.by_method import write_table
from benchmarks.quality.datasets import DATASETS
from benchmarks.quality.grid import Cell, cells
from benchmarks.quality.page import write_page
from benchmarks.quality.paired import add_truths
from benchmarks.quality.peers import measure_peer
from benchmarks.quality.running import Bench, ensure_teacher, measure
from benchmarks.quality.store import FOLDER, Store
from benchmarks.report import ROOT, machine
from limbeck.errors import LimbeckError

_QUICK = "mrpc/*/3L/seed0"
#: Seconds until a run that has nothing but cells of others before it looks again.
_PAUSE = 5.0


def main(arguments: list[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()
    store = Store(Path(chosen.results))
    only = _QUICK if chosen.quick else chosen.only
    grid = cells()
    wanted = [cell for cell in grid if only is None or fnmatch(cell.name, only)]
    if not wanted:
        print(f"No cell's name matches {only!r}; --list shows them all", file=sys.stderr)
        return 2
    if chosen.list:
        _list(wanted, grid, store)
        return 0
    if chosen.page:
        if data.is_dir():
            add_truths(Bench(data, store), DATASETS)
        write_page(store)
        write_table(store)
        return 0
    if not data.is_dir():
        print(f"No data: LIMBECK_TEST_DATA names {data}, which is not a folder", file=sys.stderr)
        return 2
    return 1 if _run(Bench(data, store), wanted, chosen) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="GLOB", help="cells whose name matches, such as 'sst2/kd/3L/seed0' or 'mrpc/*'"
    )
    parser.add_argument("--quick", action="store_true", help=f"only {_QUICK}")
    parser.add_argument("--limit", type=int, help="measure at most so many cells")
    parser.add_argument("--minutes", type=float, help="begin no further cell after so many minutes")
    parser.add_argument("--list", action="store_true", help="show the cells, what is done, and what the rest may take")
    parser.add_argument("--retry", action="store_true", help="measure cells again that failed")
    parser.add_argument("--earlier", action="store_true", help="measure cells again whose method's code has changed")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write the tables of docs/results.md and docs/methods.md"
    )
    parser.add_argument("--results", default=str(FOLDER), help="the folder of finished cells")
    return parser


def _list(wanted: list[Cell], grid: list[Cell], store: Store) -> None:
    rate, left = store.minutes_per_cost(grid), 0.0
    for cell in wanted:
        state, found = store.state(cell), store.read(cell)
        estimate = rate * cell.cost()
        took = f"{found['total_minutes']:.1f} min" if found and "total_minutes" in found else f"~{estimate:.0f} min"
        left += estimate if state == "not run" else 0.0
        print(f"{cell.name:40} {state:13} {took}")
    print(f"{len(wanted)} cells; those not run may take {left / 60:.1f} hours on this machine")


def _run(bench: Bench, wanted: list[Cell], chosen: argparse.Namespace) -> int:
    """How many cells failed. A cell that another run is at, or that waits for one, comes later."""
    began, done, failed, passed_by = time.monotonic(), 0, 0, 0
    left = deque(wanted)
    while left:
        cell = left.popleft()
        if not _is_left(bench, cell, chosen):
            continue
        if chosen.limit is not None and done >= chosen.limit:
            break
        if chosen.minutes is not None and time.monotonic() - began > 60 * chosen.minutes:
            print(f"The minutes are over: {cell.name} and what follows is left for the next run", file=sys.stderr)
            break
        with claimed(bench, cell) as mine:
            if mine and not any(_awaited(bench, needed) for needed in cell.needs):
                passed_by, done = 0, done + 1
                failed += not _one(bench, cell)
                continue
        left.append(cell)
        passed_by += 1
        if passed_by >= len(left):
            time.sleep(_PAUSE)
            passed_by = 0
    return failed


def _is_left(bench: Bench, cell: Cell, chosen: argparse.Namespace) -> bool:
    state = bench.store.state(cell, bench.hash_of(cell))
    again = (state == "failed" and chosen.retry) or (state == "earlier code" and chosen.earlier)
    return state == "not run" or again


@contextmanager
def claimed(bench: Bench, cell: Cell, *, wait: bool = False) -> Iterator[bool]:
    """Whether no other run is at the cell; while the block runs none begins it. Ends with the process that has it."""
    folder = bench.cache / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / bench.store.path(cell).stem).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _awaited(bench: Bench, needed: Cell) -> bool:
    """Whether another run is measuring it."""
    if bench.store.state(needed, bench.hash_of(needed)) != "not run":
        return False
    with claimed(bench, needed) as mine:
        return not mine


def _one(bench: Bench, cell: Cell) -> bool:
    """Measure a cell and what it needs; a failure is a result as well."""
    for needed in cell.needs:
        with claimed(bench, needed, wait=True):
            if bench.store.state(needed, bench.hash_of(needed)) == "not run":
                _one(bench, needed)
        if needed.is_teacher and bench.store.state(needed, bench.hash_of(needed)) in ("not run", "failed"):
            print(f"[{cell.name}] left out: it has no teacher, {needed.name} failed", file=sys.stderr)
            return False
    try:
        if cell.is_teacher:
            ensure_teacher(bench, cell)
        elif cell.is_peer:
            measure_peer(bench, cell)
        else:
            measure(bench, cell)
    except LimbeckError as error:
        failure = {"failure": f"{error.code}: {error.message}", "machine": machine()}
        bench.store.write(cell, bench.hash_of(cell), failure)
        print(f"[{cell.name}] failed: {error.message}", file=sys.stderr)
        return False
    except PeersUnavailable as error:  # no result of the method's: the next run tries again
        print(f"[{cell.name}] not measured: {error}", file=sys.stderr)
        return False
    print(f"[{cell.name}] done", file=sys.stderr)
    return True


if __name__ == "__main__":
    sys.exit(main())
