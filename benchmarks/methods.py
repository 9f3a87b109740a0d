"""Every method from one teacher on one data set: ``python -m benchmarks.methods``.

The teacher is fine-tuned once on SST-2 and shared; the students have 3 of its 6 layers, the same data, steps, seed and
learning rate. The baseline is the method ``none`` with the start that most methods have. Dev selects, and the reported
split (SST-2's public validation sentences) is read once. Cells are cached by their configuration, so that a run that
was cut off goes on, and ``--minutes`` ends it early with what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.running import CACHE, Teller
from benchmarks.report import ROOT, machine, markdown_table, replace_part, write_json
from limbeck.config import DistillConfig
from limbeck.engine import distill
from limbeck.errors import LimbeckError
from limbeck.scorecard import Estimate, Scorecard

PAGE = ROOT / "docs" / "methods.md"
#: Rows of the table, in their order: a name, and what is changed in the configuration.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "none": {"method": "none"},
    "kd": {"method": "kd"},
    "auto": {"method": "auto"},
    "minilm": {"method": "minilm"},
    "theseus, linear": {"method": "theseus"},
    "noise": {"method": "noise"},
    "patient": {"method": "patient"},
    "tinybert": {"method": "tinybert"},
    "theseus, additive": {"method": {"type": "theseus", "replacing": "additive"}},
    "theseus, constant": {"method": {"type": "theseus", "replacing": "constant", "base": 0.5}},
    "distilbert": {"method": "distilbert"},
    "dynabert": {"method": "dynabert"},
    "fastbert, 6 layers": {"method": "fastbert", "student": {"layers": 6}},
    "self, 6 layers": {"method": "self", "student": {"layers": 6}},
    "kd, T = 1, alpha 0.5": {"method": {"type": "kd", "temperature": 1.0, "alpha": 0.5}},
    "kd, focal weights": {"method": "kd", "training": {"sample_weighting": "focal"}},
    "kd, sentence_shuffle": {"method": "kd", "training": {"augmentation": "sentence_shuffle"}},
}
_LIMIT, _SEED = 2000, 42
_TRAINING = {"epochs": 3, "batch_size": 32, "learning_rate": 1e-4, "max_length": 64, "seed": _SEED}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help="these rows alone")
    parser.add_argument("--minutes", type=float, help="begin no further row after so many minutes")
    parser.add_argument("--no-page", action="store_true", help="leave docs/methods.md as it is")
    chosen = parser.parse_args()
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()
    if not data.is_dir():
        print(f"No data: LIMBECK_TEST_DATA names {data}, which is not a folder", file=sys.stderr)
        return 2
    began, cards, failed = time.monotonic(), {}, {}
    teacher = _teacher(data)
    for name in chosen.only or METHODS:
        if chosen.minutes is not None and time.monotonic() - began > 60 * chosen.minutes:
            failed[name] = "not begun: the minutes were over"
            continue
        try:
            cards[name] = _measured(name, METHODS[name], teacher, data)
        except LimbeckError as error:
            failed[name] = f"{error.code}: {error.message}"
    command = shlex.join(("python", "-m", "benchmarks.methods", *sys.argv[1:]))
    text = _report(cards, failed, command)
    print(text)
    figures = {name: _figures(card, _baseline(name, cards)) for name, card in cards.items()}
    write_json("methods", {"command": command, "machine": machine(), "rows": figures, "failed": failed})
    if not chosen.no_page:
        replace_part(PAGE, "methods", text)
    return 0


def _teacher(data: Path) -> Path:
    """The built-in encoder with all of its layers, fine-tuned for three epochs in all."""
    document = {
        "teacher": {"source": "builtin:minilm-l6", "finetune": {"epochs": 1, "learning_rate": 5e-5}},
        "student": {"layers": 6},
        "method": "none",
        "training": {**_TRAINING, "epochs": 2, "learning_rate": 5e-5},
    }
    _distilled("teacher", document, data)
    return CACHE / "methods" / "teacher"


def _measured(name: str, change: Mapping[str, Any], teacher: Path, data: Path) -> Scorecard:
    training = {**_TRAINING, **change.get("training", {})}
    return _distilled(
        name, {"teacher": f"path:{teacher}", "student": {"layers": 3}, **change, "training": training}, data
    )


def _distilled(name: str, document: Mapping[str, Any], data: Path) -> Scorecard:
    source = {
        "source": f"path:{data / 'sst2_glue'}",
        "splits": {"train": "train", "validation": None, "test": "validation"},
        "limit": _LIMIT,
    }
    rest = {"dataset": source, "evaluation": {"baseline": False, "hard_samples": False}, "export": []}
    config = DistillConfig.parse({**document, **rest})
    identity = config.model_dump_json().replace(str(data), "").replace(str(CACHE), "")
    folder = CACHE / "methods" / f"{name.replace(' ', '-')}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    done = folder / "scorecard.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        result = distill(config, folder, callbacks=Teller(name))
        if name == "teacher":
            shutil.copytree(result.student, CACHE / "methods" / "teacher", dirs_exist_ok=True)
        done.write_text(result.scorecard.model_dump_json(indent=1))
    return Scorecard.model_validate_json(done.read_text())


def _baseline(name: str, cards: Mapping[str, Scorecard]) -> Scorecard | None:
    """The same student without a teacher: of another size than the others', it was not trained."""
    return None if "student" in METHODS[name] else cards.get("none")


def _figures(card: Scorecard, baseline: Scorecard | None) -> dict[str, Any]:
    metric = card.main_metric
    teacher, student = card.teacher.metrics[metric], card.student.metrics[metric]
    gap = None
    if baseline is not None and card is not baseline:
        start = baseline.student.metrics[metric].value
        if teacher.value - start > 0.005:
            gap = (student.value - start) / (teacher.value - start)
    return {
        "teacher": teacher.model_dump(),
        "student": student.model_dump(),
        "validation": card.student.validation[metric],
        "retention": card.retention.model_dump(),
        "gap_recovery": gap,
        "minutes": sum(card.minutes.values()),
    }


def _report(cards: Mapping[str, Scorecard], failed: Mapping[str, str], command: str) -> str:
    host, any_card = machine(), next(iter(cards.values()))
    teacher = any_card.teacher.metrics[any_card.main_metric]
    rows = []
    for name, card in cards.items():
        found = _figures(card, _baseline(name, cards))
        gap = "" if found["gap_recovery"] is None else f"{100 * found['gap_recovery']:.0f} %"
        rows.append(
            [
                name,
                _percent(card.student.metrics[card.main_metric]),
                f"{100 * found['validation']:.1f}",
                _percent(card.retention),
                gap,
                f"{found['minutes']:.1f}",
            ]
        )
    rows += [[name, why, "", "", "", ""] for name, why in failed.items()]
    head = ("method", "student", "on dev", "retention", "gap recovery", "minutes")
    return (
        f"`{command}`, {host['date']}, {host['cores']} cores of {host['cpu']}. Teacher: {_percent(teacher)} %.\n\n"
        + markdown_table(head, rows)
    )


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
