"""``python -m benchmarks.training``: Limbeck against TextBrewer and Hugging Face's Trainer, in turns, in one run.

The other trainers live in a virtual environment of their own, which the first run makes. Before anything is timed, all
of them have to have the same losses over the first steps. The run is written to ``benchmarks/results/training.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.asking import Worker
from benchmarks.peers.venv import CONSTRAINTS, PeersUnavailable
from benchmarks.report import RESULTS, ROOT, machine, write_json
from benchmarks.training import accuracy, scaling
from benchmarks.training.fairness import STEPS, Unfair, check
from benchmarks.training.files import Files
from benchmarks.training.goals import verdicts
from benchmarks.training.measuring import CELLS, Cell, gemm_rate, measure, summary
from benchmarks.training.page import PAGE, generated, write_page
from benchmarks.training.systems import Workers
from benchmarks.training.workloads import WORKLOADS

_QUICK = {"limbeck": 4, "textbrewer-padded": 3}


def main(arguments: list[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    if chosen.page:
        return put_on_page(_result(chosen.gpu))
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()
    cells = _cells(chosen)
    if not data.is_dir():
        print(f"No data: LIMBECK_TEST_DATA names {data}, which is not a folder", file=sys.stderr)
        return 2
    if not cells:
        print(
            f"No cell's name matches {chosen.only!r}: they are {', '.join(one.name for one in CELLS)}", file=sys.stderr
        )
        return 2
    if chosen.gpu and not _has_card():
        print("--gpu needs a CUDA device, and torch sees none here", file=sys.stderr)
        return 2
    try:
        with Worker.of_limbeck() as ours, Worker.of_peers() as peers:
            run = _measured(Files(data), Workers(ours, peers), cells, chosen)
    except (PeersUnavailable, Unfair) as error:
        print(f"No result: {error}", file=sys.stderr)
        return 1
    return _report(run, chosen)


def _result(gpu: bool) -> Path:
    """Where a run's figures are kept."""
    return RESULTS / ("training-gpu.json" if gpu else "training.json")


def put_on_page(result: Path, page: Path = PAGE) -> int:
    """What ``--page`` does; the exit code."""
    if not result.exists():
        print(f"There is no run yet: {result} is written by one without --page", file=sys.stderr)
        return 2
    write_page(json.loads(result.read_text(encoding="utf-8")), page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="GLOB", help="cells whose name matches, such as 'sst2/*'; no scaling then")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every cell")
    parser.add_argument("--quick", action="store_true", help="one round of few steps: shows that it works, no figures")
    parser.add_argument(
        "--goals",
        action="store_true",
        help="exit with 1 where a goal of this kind of machine is missed or was not measured",
    )
    parser.add_argument("--gpu", action="store_true", help="on a CUDA device in bfloat16: BERT-base's shape alone")
    page = f"measure nothing; put the last run's tables into {PAGE.relative_to(ROOT)}"
    parser.add_argument("--page", action="store_true", help=page)
    return parser


def _cells(chosen: argparse.Namespace) -> list[Cell]:
    found = [cell for cell in CELLS if chosen.only is None or fnmatch(cell.name, chosen.only)]
    if chosen.gpu:
        found = [Cell(cell.workload, cell.system, 200) for cell in found if cell.workload == "base"]
    if chosen.quick:
        found = [Cell(cell.workload, cell.system, _QUICK.get(cell.system, 3)) for cell in found]
    return found


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


def _measured(files: Files, workers: Workers, cells: Sequence[Cell], chosen: argparse.Namespace) -> dict[str, Any]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if chosen.gpu else "cpu"
    losses = {} if chosen.gpu else _fair(files, workers, cells)
    found: dict[str, list[dict[str, Any]]] = {cell.name: [] for cell in cells}
    rates = [gemm_rate(device)]
    rounds = 1 if chosen.quick else chosen.rounds
    for number in range(rounds):
        for cell in cells:
            found[cell.name].append(measure(files, workers, cell, number, device))
            _say(f"round {number + 1}, {cell.name}: {1 / found[cell.name][-1]['step_seconds']:.1f} examples/s")
        rates.append(gemm_rate(device))
    rate, whole = median(rates), chosen.only is None and not chosen.gpu
    systems = [name for name in accuracy.TRAINERS if any(cell.name == f"sst2/{name}" for cell in cells)]
    asked = not chosen.gpu and len(systems) > 1
    if asked:
        _say("accuracy")
    trained = accuracy.measure(files, workers, systems, 64 if chosen.quick else accuracy.EXAMPLES) if asked else None
    if whole:
        _say("scaling")
    sizes = scaling.EXAMPLES[:2] if chosen.quick else scaling.EXAMPLES
    return {
        "command": shlex.join(("python", "-m", "benchmarks.training", *sys.argv[1:])),
        "machine": machine(),
        "versions": _versions(),
        "device": device,
        "rounds": rounds,
        "gemm": rate,
        "fairness": {"steps": STEPS, "losses": losses},
        "cells": {name: summary(one, rate) for name, one in found.items()},
        "accuracy": trained,
        "scaling": scaling.measure(files, workers, sizes) if whole else None,
    }


def _fair(files: Files, workers: Workers, cells: Sequence[Cell]) -> dict[str, Any]:
    """The losses of every workload that is measured, by all of its systems and Limbeck."""
    losses = {}
    for name, workload in WORKLOADS.items():
        systems = [cell.system for cell in cells if cell.workload == name and cell.system != "limbeck"]
        if systems:
            losses[name] = check(files, workers, workload, ["limbeck", *systems])["losses"]
            _say(f"{name}: the same losses over the first steps")
    return losses


def _versions() -> dict[str, str]:
    """Limbeck's, and those of the other trainers' environment."""
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    peers = {name: pinned[name] for name in ("textbrewer", "accelerate")}
    return {name: version(name) for name in ("limbeck", "torch", "transformers")} | peers


def _say(text: str) -> None:
    print(f"[training] {text}", file=sys.stderr, flush=True)


def _report(run: dict[str, Any], chosen: argparse.Namespace) -> int:
    print(generated(run))
    if not chosen.quick:
        print(f"written to {write_json(_result(chosen.gpu).stem, run)}", file=sys.stderr)
    missed = [one for one in verdicts(run) if not one.met and not one.elsewhere]
    if chosen.goals and missed:
        print("\n".join(f"missed: {one.goal} ({one.found})" for one in missed), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
