"""Early exit beside the plain student, in turns: ``python -m benchmarks.exits [--goals]``.

A student of 6 layers, cut from the built-in encoder, gets random branches: seconds do not ask what a branch says, only
whether it is sure, and speeds are chosen at which the texts leave behind half and a third of the layers on average. Two
more are timed at which none leaves: 0, where none can, and one so low that none is sure enough. The run is written to
``benchmarks/results/exits.json`` and put into docs/performance.md; ``--page`` does the latter alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.exits.judging import generated, verdicts
from benchmarks.report import RESULTS, ROOT, machine, replace_part, write_json
from benchmarks.serving.students import CACHE, student_folder, texts_of
from limbeck.exit_card import Answers, answers_of
from limbeck.export import onnx_runner
from limbeck.latency import Runner, measure_latency
from limbeck.runtime.encoding import Encoder, Row
from limbeck.runtime.exits import ExitSession, graph_files
from limbeck.runtime.student import StudentFacts

PAGE = ROOT / "docs" / "performance.md"
_LAYERS, _TEXTS = 6, 200
_SHARES = {"half of the layers": 1 / 2, "a third of the layers": 1 / 3}
#: Above 0, so that every branch is asked, and below what any of them says.
_UNSURE = 1e-12
_SECONDS = 3.0  #: for each batch size and speed, in a round


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exits", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--goals", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; put the last run into docs/performance.md"
    )
    chosen = parser.parse_args(arguments)
    if chosen.page:
        replace_part(PAGE, "exits", generated(json.loads((RESULTS / "exits.json").read_text())))
        return 0
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()
    if not data.is_dir():
        print(f"No data: LIMBECK_TEST_DATA names {data}, which is not a folder", file=sys.stderr)
        return 2
    run = {
        "command": shlex.join(("python", "-m", "benchmarks.exits", *sys.argv[1:])),
        "machine": machine(),
        **_measured(chosen.rounds),
    }
    print(generated(run))
    print(f"written to {write_json('exits', run)}", file=sys.stderr)
    replace_part(PAGE, "exits", generated(run))
    return 1 if chosen.goals and not all(met for _, _, met in verdicts(run)) else 0


def _measured(rounds: int) -> dict[str, Any]:
    plain = student_folder(_LAYERS)
    rows = Encoder.load(plain, StudentFacts.read(plain)).encode(texts_of("short")[:_TEXTS])
    files = graph_files(CACHE / "exits" / plain.name, _LAYERS)
    found, width, pad_id = _branched(plain, files[0].parents[2], rows)
    speeds = {"none can leave": 0.0, "none is sure enough": _UNSURE}
    speeds |= {name: speed_for(found, share * _LAYERS) for name, share in _SHARES.items()}
    layers = {name: found.at(speed)[1] for name, speed in speeds.items()}
    session = ExitSession(files, 0, pad_id=pad_id)
    runners: dict[str, Runner] = {name: partial(session.answer, speed=speed) for name, speed in speeds.items()}
    runners["plain"] = onnx_runner(plain, "onnx")
    turns = []
    for number in range(rounds):
        turns.append(measure_latency(runners, rows, pad_id=pad_id, seconds=_SECONDS))
        print(f"[exits] round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        "layers": _LAYERS,
        "width": width,
        "texts": len(rows),
        "tokens": float(np.mean([len(row) for row in rows])),
        "rounds": rounds,
        "batches": [_batch(turns, place, speeds, layers) for place in range(len(turns[0]["plain"]))],
    }


def _branched(plain: Path, folder: Path, rows: Sequence[Row]) -> tuple[Answers, int, int]:
    """Write the student's graphs with random branches; what those answer, the width and the padding token."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from limbeck import exits
    from limbeck.batches import Encoded
    from limbeck.exit_graph import write_exit_graphs

    model: Any = AutoModelForSequenceClassification.from_pretrained(plain, dtype="float32")
    torch.manual_seed(0)
    exits.attach(model)
    write_exit_graphs(model.train(False), folder)
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    ids = np.array([token for row in rows for token in row.ids], dtype=np.int32)
    data = Encoded(ids, None, starts, np.zeros(len(rows), dtype=np.int64))
    found = answers_of(model, data, torch.device("cpu"), lambda: None)
    return found, int(model.config.hidden_size), int(model.config.pad_token_id or 0)


def speed_for(found: Answers, wanted: float) -> float:
    """The speed at which texts go through ``wanted`` layers on average, as near as there is one."""
    levels: NDArray[np.float64] = np.unique(found.uncertainty[:-1].astype(np.float64))
    between = (levels[:-1] + levels[1:]) / 2  # on no text's own level: torch and ONNX round otherwise
    return min(between.tolist(), key=lambda speed: abs(float(found.at(speed)[1].mean()) - wanted))


def _batch(
    turns: Sequence[dict[str, Any]], place: int, speeds: dict[str, float], layers: dict[str, NDArray[np.int64]]
) -> dict[str, Any]:
    plain = [turn["plain"][place].examples_per_second for turn in turns]
    points = []
    for name, speed in speeds.items():
        rates = [turn[name][place].examples_per_second for turn in turns]
        ratios = [ours / theirs for ours, theirs in zip(rates, plain, strict=True)]
        points.append(
            {
                "name": name,
                "speed": speed,
                "leaves": name in _SHARES,
                "mean_layers": float(layers[name].mean()),
                "ms": 1000 / median(rates),
                "ratio": median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
        )
    return {"batch_size": turns[0]["plain"][place].batch_size, "plain_ms": 1000 / median(plain), "points": points}


if __name__ == "__main__":
    sys.exit(main())
