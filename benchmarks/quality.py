"""How much of a teacher its students keep, on real data.

``python -m benchmarks.quality --quick`` distils SST-2 once (about ten minutes on two cores); without ``--quick`` the
grid below runs over three seeds. Every cell is cached by its configuration and goes on where it was interrupted.
The data is read from ``LIMBECK_TEST_DATA``; a benchmark that finds none says so and measures nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.report import ROOT, machine, markdown_table, replace_part, write_json
from limbeck.callbacks import Callbacks, Progress, Stage
from limbeck.config import DistillConfig
from limbeck.engine import distill
from limbeck.scorecard import Estimate, Scorecard

CACHE = Path(__file__).parent / ".cache" / "quality"
PAGE = ROOT / "docs" / "results.md"
RETENTION_GOAL = 0.97


@dataclass(frozen=True)
class Cell:
    """One data set with the settings under which it is distilled."""

    dataset: str
    #: Where the set has a public validation split and no labelled test split, the former is what is reported, and the
    #: weights are selected on a part cut from train.
    test: str
    training: Mapping[str, Any]
    teacher: Mapping[str, Any]
    limit: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def config(self, data: Path, seed: int) -> DistillConfig:
        """The cell's configuration for one seed."""
        return DistillConfig.parse(
            {
                "teacher": {"source": "builtin:minilm-l6", "finetune": dict(self.teacher)},
                "dataset": {
                    "source": f"path:{data / self.dataset}",
                    "splits": {"train": "train", "validation": None, "test": self.test},
                    "limit": self.limit,
                    **self.extra,
                },
                "student": {"layers": 3},
                "method": "kd",
                "training": {**self.training, "seed": seed},
            }
        )


GRID = (
    Cell(
        "sst2_glue",
        test="validation",
        limit=8000,
        teacher={"epochs": 2, "learning_rate": 5e-5},
        training={"epochs": 3, "learning_rate": 1e-4, "max_length": 64},
    ),
    Cell(
        "banking77",
        test="test",
        teacher={"epochs": 8, "learning_rate": 1e-4},
        training={"epochs": 8, "learning_rate": 2e-4, "max_length": 64},
    ),
    Cell(
        "mrpc",
        test="test",
        teacher={"epochs": 4, "learning_rate": 5e-5},
        training={"epochs": 6, "learning_rate": 1e-4, "max_length": 128},
    ),
)


class Teller(Callbacks):
    """Says on stderr what the engine is at."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = -10.0

    def on_stage(self, stage: Stage) -> None:
        self._say(f"stage {stage}")

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        if kind != "checkpoint.saved":
            self._say(message)

    def on_progress(self, progress: Progress) -> None:
        if progress.percent - self._last >= 10:
            self._last = progress.percent
            left = f", {progress.eta_seconds:.0f} s left" if progress.eta_seconds is not None else ""
            self._say(f"{progress.percent:.0f} %{left}")

    def _say(self, text: str) -> None:
        print(f"[{self._name}] {text}", file=sys.stderr, flush=True)


def measure(cell: Cell, data: Path, seed: int) -> Scorecard:
    """Distil one cell, or read what an earlier run of the very same configuration found."""
    config = cell.config(data, seed)
    identity = config.model_dump_json().replace(str(data), "")
    folder = CACHE / f"{cell.dataset}-{seed}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    done = folder / "scorecard.json"
    if done.exists():
        return Scorecard.model_validate_json(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    card = distill(config, folder, callbacks=Teller(f"{cell.dataset} seed {seed}")).scorecard
    done.write_text(card.model_dump_json(indent=1))
    return card


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def _over_seeds(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def _row(dataset: str, card: Scorecard) -> list[str]:
    metric = card.main_metric
    gap = card.gap_recovery
    assert card.baseline is not None
    return [
        dataset,
        card.method,
        str(card.seed),
        _percent(card.teacher.metrics[metric]),
        _percent(card.baseline.metrics[metric]),
        _percent(card.student.metrics[metric]),
        _percent(card.retention),
        _percent(gap) if gap else f"– {card.gap_recovery_note or ''}".strip(),
        f"{card.speedup['1']:.2f}× / {card.speedup['32']:.2f}×",
        f"{sum(card.minutes.values()):.1f}",
    ]


HEAD = (
    "data",
    "method",
    "seed",
    "teacher",
    "baseline",
    "student",
    "retention",
    "gap recovery",
    "speed-up b1 / b32",
    "minutes",
)


def report(cards: Mapping[str, list[Scorecard]], command: str) -> str:
    """The page's part: one row for each run, then a line for each data set over its seeds."""
    host = machine()
    lines = [
        f"`{command}`, {host['date']}, {host['cores']} cores of {host['cpu']}. Accuracy in percent on the reported "
        "split with its 95 % interval by bootstrap; retention is student / teacher, gap recovery (student − baseline) "
        "/ (teacher − baseline), both by paired bootstrap; the baseline is the same 3-layer student fine-tuned "
        "without a teacher, with the same start, steps and data.",
        "",
        markdown_table(HEAD, (_row(name, card) for name, found in cards.items() for card in found)),
        "",
    ]
    for name, found in cards.items():
        if len(found) > 1:
            retention = _over_seeds([card.retention.value for card in found])
            lines.append(f"- {name} over {len(found)} seeds: retention {retention} %.")
    return "\n".join(lines).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="SST-2 only, one seed")
    parser.add_argument("--only", help="only data sets whose name contains this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--goals", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--no-page", action="store_true", help="leave docs/results.md as it is")
    chosen = parser.parse_args()

    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()
    if not data.is_dir():
        print(f"No data: LIMBECK_TEST_DATA names {data}, which is not a folder", file=sys.stderr)
        return 2
    cells = [cell for cell in GRID[: 1 if chosen.quick else None] if not chosen.only or chosen.only in cell.dataset]
    seeds = [42] if chosen.quick else [42 + index for index in range(chosen.seeds)]
    cards = {cell.dataset: [measure(cell, data, seed) for seed in seeds] for cell in cells}

    name = "quality-quick" if chosen.quick else "quality"
    command = f"python -m benchmarks.quality{' --quick' if chosen.quick else ''}"
    text = report(cards, command)
    print(text)
    found = {key: [json.loads(card.model_dump_json()) for card in value] for key, value in cards.items()}
    for one in (card for cards_of in found.values() for card in cards_of):
        # Where the data lies on this machine concerns nobody.
        one["dataset"]["source"] = one["dataset"]["source"].replace(str(data), "$LIMBECK_TEST_DATA")
    write_json(name, {"command": command, "machine": machine(), "cards": found})
    if not chosen.no_page:
        replace_part(PAGE, name, text)
    missed = [
        f"{key} seed {c.seed}" for key, value in cards.items() for c in value if c.retention.value < RETENTION_GOAL
    ]
    if chosen.goals and missed:
        print(f"Goal missed: retention of at least {RETENTION_GOAL:.0%} ({', '.join(missed)})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
