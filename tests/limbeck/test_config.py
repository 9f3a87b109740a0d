"""Configurations: shorthand, defaults, and what a stranger is told about a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.config import DistillConfig
from limbeck.errors import InvalidConfig
from limbeck.methods.auto import Auto

BUILTIN = "builtin:stdlib-docstrings"
SMALLEST: dict[str, Any] = {"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings"}


def test_shorthand_means_the_full_form() -> None:
    short = DistillConfig.parse({**SMALLEST, "method": "kd", "student": 3, "task": "sequence_classification"})
    full = {
        "teacher": {"source": "builtin:minilm-l6"},
        "dataset": {"source": "builtin:stdlib-docstrings"},
        "method": {"type": "kd", "temperature": 3.0, "alpha": 0.5},
        "student": {"layers": 3},
        "task": {"type": "sequence_classification"},
    }
    assert short == DistillConfig.parse(full)


def test_a_configuration_survives_json() -> None:
    """Guards the job's JSON column: what is read back is what was submitted, defaults written out."""
    config = DistillConfig.parse({**SMALLEST, "student": [1, 3, 5]})
    assert DistillConfig.model_validate_json(config.model_dump_json()) == config
    assert isinstance(config.method, Auto)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DistillConfig.parse(SMALLEST).training.epochs = 9


ID = "01a216c8-e6a2-756c-af90-7e2345612a27"


@pytest.mark.parametrize(
    ("change", "pointer", "said"),
    [
        ({"method": "magic"}, "/method", "'kd', 'patient'"),
        ({"method": {"type": "magic"}}, "/method", "'kd', 'patient'"),
        ({"method": {"type": "kd", "temperature": 0}}, "/method/temperature", "greater than or equal to 0.1; found 0"),
        ({"method": {"type": "kd", "alpha": 1.5}}, "/method/alpha", "less than or equal to 1; found 1.5"),
        ({"method": {"type": "kd", "temprature": 2}}, "/method/temprature", "field; is 'temperature' meant?"),
        ({"method": {"temperature": 2}}, "/method", "found no 'type'; allowed: 'auto', 'kd'"),
        ({"method": None}, "/method", "found no 'type'; allowed: 'auto', 'kd'"),
        ({"training": {"epoch": 2}}, "/training/epoch", "is 'epochs' meant?"),
        ({"training": {"loss": {"type": "jsd", "gama": 1}}}, "/training/loss/gama", "allowed: 'type', 'beta'"),
        ({"teacher": {"source": "a/b", "more": [{"source": "a/b", "fine": 1}]}}, "/teacher/more/0/fine", "'finetune'"),
        ({"teacher": {"source": "a/b", "finetune": {"epoch": 1}}}, "/teacher/finetune/epoch", "is 'epochs' meant?"),
        ({"teacher": "builtin:bert"}, "/teacher", "builtin:minilm-l6"),
        ({"teacher": {"source": "../etc"}}, "/teacher/source", "hub name"),
        ({"dataset": f"ds_{ID}"}, "/dataset", f"is 'dataset:ds_{ID}' meant?"),
        ({"teacher": {"source": f"mdl_{ID}"}}, "/teacher/source", f"is 'model:mdl_{ID}' meant?"),
        ({"teacher": f"job_{ID}"}, "/teacher", "a teacher is named 'model:mdl_…'"),
        ({"dataset": "train.csv"}, "/dataset", "the name of a file: upload it, and name it as 'dataset:ds_…'"),
        ({"dataset": {"source": "a/b", "splits": {"test": "train"}}}, "/dataset/splits", "name each split once"),
        ({"dataset": {"source": "a/b", "splits": {"train": "x", "validation": "x"}}}, "/dataset/splits", "found x, x"),
        ({"student": True}, "/student", "a number is asked for; found True"),
        ({"student": {"layers": True}}, "/student/layers", "a number is asked for; found True"),
        ({"student": {"layers": 3, "prune": True}}, "/student/prune", "a number is asked for"),
        ({"method": {"type": "kd", "temperature": True}}, "/method/temperature", "a number is asked for"),
        ({"training": {"gradient_accumulation": True}}, "/training/gradient_accumulation", "a number is asked for"),
        ({"student": {"layers": 0}}, "/student/layers", "1 to 96"),
        ({"student": {"layers": [3, 1]}}, "/student/layers", "rising"),
        ({"training": {"batch_size": 32, "gradient_accumulation": 5}}, "/training", "divide"),
        ({"training": {"learning_rate": 1}}, "/training/learning_rate", "0.01"),
        ({"training": {"loss": "mse"}}, "/training/loss", "'kl'"),
        ({"training": {"loss": {"type": "jsd", "beta": 0.001}}}, "/training/loss/beta", "0.01 to 0.99"),
        ({"training": {"sample_weighting": "hard"}}, "/training/sample_weighting", "'focal'"),
        ({"training": {"sample_weighting": {"type": "focal", "gamma": 0}}}, "/training/sample_weighting/gamma", "0"),
        ({"export": ["tflite"]}, "/export/0", "onnx"),
        ({"trainning": {}}, "/trainning", "no such field"),
        ({"version": 2}, "/version", "1"),
    ],
)
def test_each_mistake_is_named_with_its_place_and_what_is_allowed(change: Any, pointer: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse({**SMALLEST, **change})
    problems = {problem.pointer: problem.detail for problem in caught.value.problems}
    assert any(place.startswith(pointer) for place in problems), problems
    assert any(said in detail for detail in problems.values()), problems


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse({"dataset": "a/b", "method": "magic", "training": {"epochs": 0}})
    assert {problem.pointer for problem in caught.value.problems} == {"/teacher", "/method", "/training/epochs"}


@pytest.mark.parametrize(
    ("change", "pointer", "said"),
    [
        ({"dataset": {"source": BUILTIN, "columns": {"text": "x"}}}, "/dataset", "columns cannot be chosen"),
        ({"dataset": {"source": BUILTIN, "splits": {"test": "x"}}}, "/dataset", "splits cannot be chosen"),
        ({"dataset": {"source": "path:/data", "subset": "x"}}, "/dataset", "subset is of sources on the hub"),
        ({"dataset": {"source": "dataset:ds_1", "revision": "x"}}, "/dataset", "revision is of sources on the hub"),
        ({"teacher": {"source": "builtin:minilm-l6", "revision": "x"}}, "/teacher", "revision is of"),
        ({"teacher": {"source": "org/a", "more": [{"source": "path:/b", "revision": "x"}]}}, "/teacher/more/0", "hub"),
        ({"student": {"source": "model:mdl_1", "revision": "x"}}, "/student", "revision is of"),
        ({"student": {"layers": [0, 2], "init": "last"}}, "/student", "init does not go with"),
        (
            {"training": {"augmentation": {"type": "unlabelled", "source": BUILTIN, "split": "test"}}},
            "/training/augmentation",
            "split cannot be chosen",
        ),
    ],
)
def test_what_nobody_would_read_is_refused(change: Any, pointer: str, said: str) -> None:
    """Guards choices that are passed over in silence, whose job then is another than was asked for."""
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse({"teacher": "org/a", "dataset": "org/b", **change})
    (problem,) = caught.value.problems
    assert (problem.pointer, said in problem.detail) == (pointer, True)
