"""Every method from one teacher on one data set: ``python -m benchmarks.methods``.

The teacher is fine-tuned once on SST-2 and shared; the students have 3 of its 6 layers, the same data, steps, seed and
learning rate. The baseline is the method ``none`` from the layers that the row's student starts from. Dev selects, and
the reported split (SST-2's public validation sentences) is read once. Cells are cached by their configuration, so that
a run that was cut off goes on, and ``--minutes`` ends it early with what there is. ``--page`` measures nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.running import CACHE, Teller
from benchmarks.report import RESULTS, ROOT, machine, markdown_table, replace_part, write_json
from limbeck.config import DistillConfig
from limbeck.engine import distill
from limbeck.errors import LimbeckError, TeacherUnfit
from limbeck.evaluate import SMALLEST_GAP
from limbeck.scorecard import Scorecard
from limbeck.shapes import default_start

PAGE = ROOT / "docs" / "methods.md"
#: Rows of the table, in their order: a name, and what is changed in the configuration.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "none": {"method": "none"},
    "none, first layers": {"method": "none", "student": {"layers": 3, "init": "first"}},
    "none, uniform": {"method": "none", "student": {"layers": 3, "init": "uniform"}},
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
    "kd, uniform": {"method": "kd", "student": {"layers": 3, "init": "uniform"}},
    "kd, T = 4, alpha 0.9": {"method": {"type": "kd", "temperature": 4.0, "alpha": 0.9}},
    "kd, focal weights": {"method": "kd", "training": {"sample_weighting": "focal"}},
    "kd, sentence_shuffle": {"method": "kd", "training": {"augmentation": "sentence_shuffle"}},
}
#: The baseline of each start, and of students with so many layers.
BASELINES: Mapping[str, str] = {"skip": "none", "first": "none, first layers", "uniform": "none, uniform"}
_LAYERS, _TEACHERS_LAYERS = 3, 6
_LIMIT, _SEED = 2000, 42
_TRAINING = {"epochs": 3, "batch_size": 32, "learning_rate": 1e-4, "max_length": 64, "seed": _SEED}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), help="these rows alone")
    parser.add_argument("--minutes", type=float, help="begin no further row after so many minutes")
    page = parser.add_mutually_exclusive_group()
    page.add_argument("--no-page", action="store_true", help="leave docs/methods.md as it is")
    page.add_argument(
        "--page", action="store_true", help="measure nothing; put the last run's table into docs/methods.md"
    )
    chosen = parser.parse_args(arguments)
    if chosen.page:
        replace_part(PAGE, "methods", report(json.loads((RESULTS / "methods.json").read_text())))
        return 0
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()
    if not data.is_dir():
        print(f"No data: LIMBECK_TEST_DATA names {data}, which is not a folder", file=sys.stderr)
        return 2
    began, teacher = time.monotonic(), _teacher(data)
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in chosen.only or METHODS:
        if chosen.minutes is not None and time.monotonic() - began > 60 * chosen.minutes:
            failed[name] = "not begun: the minutes were over"
            continue
        try:
            rows[name] = _figures(_measured(name, METHODS[name], teacher, data))
        except LimbeckError as error:
            failed[name] = f"{error.code}: {error.message}"
    command = shlex.join(("python", "-m", "benchmarks.methods", *sys.argv[1:]))
    run = {"command": command, "machine": machine(), "rows": rows, "failed": failed}
    text = report(run)
    print(text)
    write_json("methods", run)
    if not chosen.no_page:
        replace_part(PAGE, "methods", text)
    return 0


def _teacher(data: Path) -> Path:
    """The built-in encoder with all of its layers, fine-tuned for three epochs in all."""
    document = {
        "teacher": {"source": "builtin:minilm-l6", "finetune": {"epochs": 1, "learning_rate": 5e-5}},
        "student": {"layers": _TEACHERS_LAYERS},
        "method": "none",
        "training": {**_TRAINING, "epochs": 2, "learning_rate": 5e-5},
    }
    _distilled("teacher", document, data)
    return CACHE / "methods" / "teacher"


def _measured(name: str, change: Mapping[str, Any], teacher: Path, data: Path) -> Scorecard:
    training = {**_TRAINING, **change.get("training", {})}
    return _distilled(
        name, {"teacher": f"path:{teacher}", "student": {"layers": _LAYERS}, **change, "training": training}, data
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


def baseline_of(name: str) -> str | None:
    """The row of the same student without a teacher; None for baselines, and where there is none of that size."""
    change = METHODS[name]
    document = {"teacher": "path:/", "dataset": "path:/", "student": {"layers": _LAYERS}, **change}
    config = DistillConfig.parse({key: document[key] for key in ("teacher", "dataset", "student", "method")})
    if config.method.type == "none" or config.student.layers != _LAYERS:
        return None
    start = config.method.student(config.student, _TEACHERS_LAYERS).init
    return BASELINES.get(start or default_start(_LAYERS, _TEACHERS_LAYERS))


def gap_recovery(name: str, rows: Mapping[str, Any]) -> float | None:
    """What the row won back of what its own baseline is under the teacher; None without such a baseline, or a gap."""
    baseline = rows.get(baseline_of(name) or "")
    if baseline is None:
        return None
    start, row = baseline["student"]["value"], rows[name]
    gap: float = row["teacher"]["value"] - start
    return (row["student"]["value"] - start) / gap if gap > SMALLEST_GAP else None


def _figures(card: Scorecard) -> dict[str, Any]:
    metric = card.main_metric
    if card.retention is None:
        raise TeacherUnfit(str(card.retention_note))
    return {
        "teacher": card.teacher.metrics[metric].model_dump(),
        "student": card.student.metrics[metric].model_dump(),
        "validation": card.student.validation[metric],
        "retention": card.retention.model_dump(),
        "minutes": sum(card.minutes.values()),
    }


def report(run: Mapping[str, Any]) -> str:
    """The table of a run."""
    host, rows = run["machine"], run["rows"]
    cells = [_cells(name, rows) for name in METHODS if name in rows]
    cells += [[name, why, "", "", "", ""] for name, why in run["failed"].items()]
    head = ("method", "student", "on dev", "retention", "gap recovery", "minutes")
    teacher = _percent(next(iter(rows.values()))["teacher"])
    without = [name for name in rows if (baseline := baseline_of(name)) is not None and baseline not in rows]
    left = ", ".join(f"`{name}`" for name in without)
    note = (
        f"\n\nWithout gap recovery are students of another size than the baselines', and those whose own baseline, the "
        f"same start without a teacher, was not measured: {left}."
    )
    return (
        f"`{run['command']}`, {host['date']}, {host['cores']} cores of {host['cpu']}. Teacher: {teacher} %.\n\n"
        + markdown_table(head, cells)
        + (note if without else "")
    )


def _cells(name: str, rows: Mapping[str, Any]) -> list[str]:
    row, gap = rows[name], gap_recovery(name, rows)
    return [
        name,
        _percent(row["student"]),
        f"{100 * row['validation']:.1f}",
        _percent(row["retention"]),
        "" if gap is None else f"{100 * gap:.0f} %",
        f"{row['minutes']:.1f}",
    ]


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f}–{100 * estimate['high']:.1f})"


if __name__ == "__main__":
    sys.exit(main())
