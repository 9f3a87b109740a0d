"""What is known to be wrong before any training is refused with the field to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from limbeck import preflight
from limbeck.config import DistillConfig, Teacher
from limbeck.sources import model_facts, teacher_folder
from tests.tiny import write_tiny_bert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert", layers=3, labels=["gui", "networking"])


def _problems(**changes: object) -> dict[str, str]:
    document = {"teacher": "builtin:minilm-l6", "dataset": "someone/data", **changes}
    teacher = model_facts(teacher_folder(Teacher(source="builtin:minilm-l6")).path)
    found = preflight.check(DistillConfig.parse(document), teacher=teacher, labels=["a", "b"])
    return {problem.pointer: problem.detail for problem in found}


def test_preflight_names_the_field_and_what_is_allowed() -> None:
    assert _problems(student=3) == {}
    assert "1 to 6 are allowed" in _problems(student=7)["/student/layers"]
    assert "the layers 0 to 5" in _problems(student={"layers": [1, 6]})["/student/layers"]
    assert "at most 512 tokens" in _problems(training={"max_length": 513})["/training/max_length"]
    finetune = {"source": "builtin:minilm-l6", "finetune": False}
    assert "has no head to use" in _problems(teacher=finetune)["/teacher/finetune"]


def test_preflight_refuses_a_head_that_answers_with_other_labels(tiny: Path) -> None:
    config = DistillConfig.parse({"teacher": f"path:{tiny}", "dataset": "someone/data"})
    facts = model_facts(tiny)
    assert preflight.check(config, teacher=facts, labels=["networking", "gui"]) == ()
    (problem,) = preflight.check(config, teacher=facts, labels=["positive", "negative"])
    assert problem.pointer == "/teacher/source"


def test_preflight_refuses_a_family_whose_layers_cannot_be_taken_apart(tiny: Path) -> None:
    """A job would wait its turn, fetch gigabytes, and only then fail."""
    config = DistillConfig.parse({"teacher": "someone/deberta", "dataset": "someone/data"})
    facts = replace(model_facts(tiny), model_type="deberta-v2")
    (problem,) = preflight.check(config, teacher=facts, labels=None)
    assert problem.pointer == "/teacher/source"
    assert "'deberta-v2'; allowed: bert" in problem.detail
