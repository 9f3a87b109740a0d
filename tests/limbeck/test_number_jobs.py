"""Whole jobs whose answers are numbers: where heads begin, and that nothing hangs on what labels are counted in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from limbeck.config import DistillConfig
from limbeck.engine import distill
from tests.limbeck.bench import Recorder
from tests.limbeck.task_data import write
from tests.tiny import write_tiny_bert


@pytest.mark.parametrize(
    "changes",
    [
        {"student": {"layers": 1, "start": "random"}},
        {"student": {"architecture": "bilstm"}},
        {"student": {"source": ""}},
        {"method": "self", "student": {}},
    ],
    ids=["random", "bilstm", "source", "self"],
)
def test_a_new_head_of_numbers_begins_at_their_mean(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Guards labels far from 0, which a head that starts there does not reach in its training; its teacher does. The
    rate is so small that what is saved is what the student started from."""
    teacher, data = write_tiny_bert(tmp_path / "teacher"), write("regression", tmp_path / "data")
    if changes["student"].get("source") == "":
        changes = {"student": {"source": f"path:{write_tiny_bert(tmp_path / 'own', seed=1)}"}}
    document = {
        "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 12, "learning_rate": 5e-3}},
        "dataset": f"path:{data}",
        "method": "kd",
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-30, "max_length": 32},
        "export": [],
        **changes,
    }
    result = distill(DistillConfig.parse(document), tmp_path / "job")
    labels = [json.loads(line)["label"] for line in (data / "train.jsonl").read_text().splitlines()]
    assert result.baseline is not None
    for folder in (result.student, result.baseline):
        bias = load_file(folder / "model.safetensors")["classifier.bias"]
        assert bias.tolist() == pytest.approx([sum(labels) / len(labels)], rel=1e-4)


def scores(folder: Path, factor: float) -> Path:
    """A data set of numbers, all multiplied."""
    data = write("regression", folder)
    for path in data.iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"label": row["label"] * factor}) + "\n" for row in rows))
    return data


def test_losses_of_numbers_do_not_hang_on_their_unit(tmp_path: Path) -> None:
    """Guards against a loss of hidden states that means nothing beside prices and all beside shares: a student at the
    labels' mean has a loss of about 1 whatever they are counted in."""
    teacher, first = write_tiny_bert(tmp_path / "teacher"), []
    for name, factor in (("stars", 1.0), ("cents", 4000.0)):
        data = scores(tmp_path / name, factor)
        document = {
            "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 12, "learning_rate": 5e-3}},
            "dataset": f"path:{data}",
            "student": {"layers": 1, "start": "random"},
            "method": "none",
            "training": {"epochs": 1, "batch_size": 96, "learning_rate": 1e-30, "max_length": 32},
            "export": [],
        }
        kept = Recorder()
        distill(DistillConfig.parse(document), tmp_path / f"{name}-job", callbacks=kept)
        name = "distilling/hard_loss"
        first.append(next(values[name] for _, values in kept.points if name in values))
    assert first == pytest.approx([1, 1], abs=0.2)


@pytest.mark.parametrize(
    ("factor", "student"),
    [(2.0**-10, {"layers": 1}), (2.0**12, {"architecture": "bigru", "hidden_size": 16})],
)
def test_a_student_of_numbers_does_not_hang_on_their_unit(
    tmp_path: Path, factor: float, student: dict[str, Any]
) -> None:
    """Guards against a head that AdamW's steps, which are as long in every unit, never move beside prices and throw
    about beside shares. By a power of two, so that nothing rounds otherwise; weight decay and clipping included."""
    teacher, cards = write_tiny_bert(tmp_path / "teacher"), []
    for name, unit in (("one", 1.0), ("other", factor)):
        data = scores(tmp_path / name, unit)
        document = {
            "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 12, "learning_rate": 5e-3}},
            "dataset": f"path:{data}",
            "task": "regression",
            "student": student,
            "method": "kd",
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3, "max_length": 32, "weight_decay": 0.1},
            "export": [],
        }
        cards.append(distill(DistillConfig.parse(document), tmp_path / f"{name}-job").scorecard)
    for ours, theirs in zip(*([card.teacher, card.student, card.baseline] for card in cards), strict=True):
        assert ours is not None
        assert theirs is not None
        assert theirs.validation["spearman"] == pytest.approx(ours.validation["spearman"], abs=1e-6)
        assert theirs.metrics["rmse"].value == pytest.approx(ours.metrics["rmse"].value * factor, rel=1e-5)
