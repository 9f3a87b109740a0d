"""Self-distillation: a student of the teacher's size that is not the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck import preflight
from limbeck.config import DistillConfig, Student
from limbeck.engine import distill
from limbeck.methods.self_distillation import SelfDistillation
from limbeck.model_folder import model_facts
from limbeck.students import student_layers
from tests.tiny import write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data"), rows=96, labels=LABELS)


def learn(teacher: Any, data: Path, workdir: Path, rate: float, **changes: Any) -> Weights:
    """The student's weights as they were saved, the baseline's under ``baseline/…``."""
    document: dict[str, Any] = {
        "teacher": teacher,
        "dataset": f"path:{data}",
        "method": "self",
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": rate, "max_length": 32},
        "export": [],
    }
    result = distill(DistillConfig.parse({**document, **changes}), workdir)
    weights = load_file(result.student / "model.safetensors")
    if result.baseline is not None:
        found = load_file(result.baseline / "model.safetensors")
        weights |= {f"baseline/{name}": value for name, value in found.items()}
    return weights


#: So small that no weight moves, but zeros to 1e-30: what is saved is what the student started from.
STILL = 1e-30


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-20)


def test_the_student_starts_from_the_encoder_before_it_was_fine_tuned(data: Path, tmp_path: Path) -> None:
    """Guards against a copy of the teacher, whose soft loss is 0 and whose row would say nothing; and against a
    baseline from another start."""
    bare = write_tiny_bert(tmp_path / "bare")
    tune = {"source": f"path:{bare}", "finetune": {"epochs": 2, "learning_rate": 3e-3}}
    started = learn(tune, data, tmp_path / "job", STILL)
    for name, value in load_file(bare / "model.safetensors").items():
        assert same(started[f"bert.{name}"], value), name
        assert same(started[f"baseline/bert.{name}"], value), name
    assert same(started["baseline/classifier.weight"], started["classifier.weight"])


def test_of_a_teacher_that_came_fine_tuned_the_head_is_new(data: Path, tmp_path: Path) -> None:
    bare = write_tiny_bert(tmp_path / "bare")
    tune = {"source": f"path:{bare}", "finetune": {"epochs": 2, "learning_rate": 3e-3}}
    learn(tune, data, tmp_path / "first", 3e-3, method="kd", evaluation={"baseline": False})
    teacher = tmp_path / "first" / "output" / "student"
    started = learn(f"path:{teacher}", data, tmp_path / "second", STILL)
    for name, value in load_file(teacher / "model.safetensors").items():
        for start in (started[name], started[f"baseline/{name}"]):
            assert same(start, value) == (not name.startswith("classifier.")), name


def test_the_student_has_all_layers_by_default_and_no_fewer(tmp_path: Path) -> None:
    facts = model_facts(write_tiny_bert(tmp_path, layers=3, labels=LABELS))

    def found(**changes: Any) -> dict[str, str]:
        document = {"teacher": f"path:{tmp_path}", "dataset": "someone/data", "method": "self", **changes}
        problems = preflight.check(DistillConfig.parse(document), teacher=facts, labels=list(LABELS))
        return {problem.pointer: problem.detail for problem in problems}

    assert student_layers(SelfDistillation().student(Student(), 3), 3) == (0, 1, 2)
    assert found() == {}
    assert found(student=3) == {}
    assert "take kd for a smaller one; allowed: 3" in found(student=2)["/student/layers"]
    assert "as large as its teacher" in found(student=[0, 2])["/student/layers"]
