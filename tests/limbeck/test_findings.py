"""Each thing that is wrong with a configuration is told once, at its field, in the words of JSON."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck import preflight
from limbeck.config import DistillConfig, Teacher
from limbeck.errors import InvalidConfig, InvalidModel
from limbeck.model_folder import config_facts, model_facts
from limbeck.sources import teacher_folder

NEEDED = {"teacher": "builtin:minilm-l6", "dataset": "org/data"}
_TWO = ["/student/layers", "/training/max_length"]


def refused(document: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse(NEEDED | document)
    return [(one.pointer, one.detail) for one in caught.value.problems]


@pytest.mark.parametrize(
    ("document", "pointer", "detail"),
    [
        ({"student": {"layers": "three"}}, "/student/layers", "a whole number, or a list; found 'three'"),
        ({"student": 2.5}, "/student", "a whole number, or a list; found 2.5"),
        ({"student": ["a", 2]}, "/student/0", "a whole number; found 'a'"),
        ({"training": {"gradient_accumulation": 1.5}}, "/training/gradient_accumulation", "a whole number, or 'auto'"),
        (
            {"training": {"gradient_accumulation": 0}},
            "/training/gradient_accumulation",
            "greater than or equal to 1, or 'auto'; found 0",
        ),
        ({"method": {"type": "patient", "layer_map": "all"}}, "/method/layer_map", "'skip' or 'last', or a list"),
        ({"method": {"type": "patient", "layer_map": [0.5]}}, "/method/layer_map/0", "a whole number; found 0.5"),
        (
            {"teacher": {"source": "org/one", "finetune": {"epochs": 0}}},
            "/teacher/finetune/epochs",
            "greater than or equal to 1; found 0",
        ),
        ({"teacher": {"source": "org/one", "finetune": 3}}, "/teacher/finetune", "an object, or true or false"),
        ({"method": {"type": "dynabert", "widths": [2]}}, "/method/widths/0", "less than or equal to 1; found 2"),
        ({"export": "onnx"}, "/export", "a list; found 'onnx'"),
        ({"gate": 0.95}, "/gate", "an object; found 0.95"),
    ],
)
def test_one_mistake_is_one_problem(document: dict[str, Any], pointer: str, detail: str) -> None:
    """Guards against what a union's other members miss, and what only follows, as problems of their own."""
    ((where, what),) = refused(document)
    assert where == pointer
    assert what.startswith("Input should be ")
    assert detail in what


def test_a_form_that_is_named_twice_is_refused() -> None:
    """Guards against writing, timing and telling it twice; what was accepted once stays accepted."""
    ((pointer, detail),) = refused({"export": ["onnx", "onnx-int8", "onnx"]})
    assert (pointer, detail) == ("/export", "found onnx, onnx-int8, onnx: name each form once")
    DistillConfig.parse(NEEDED | {"export": ["onnx", "onnx"]}, stored=True)


def test_a_list_that_is_too_short_by_itself_is_told() -> None:
    assert refused({"method": {"type": "dynabert", "widths": []}})[0][0] == "/method/widths"


def test_several_mistakes_are_told_together() -> None:
    found = refused({"student": {"layers": "three", "hidden_size": "x"}, "method": {"type": "kd", "alpha": 2}})
    assert [pointer for pointer, _ in found] == ["/student/layers", "/student/hidden_size", "/method/alpha"]


@pytest.mark.parametrize(
    ("document", "data", "pointers"),
    [
        # What one of two that do not go together would miss besides is no news.
        ({"method": "fastbert", "task": "masked_lm", "training": {"loss": "dkd"}}, None, ["/method"]),
        ({"method": "fastbert", "student": {"architecture": "bilstm"}}, None, ["/method"]),
        ({"method": "theseus", "student": {"architecture": "bilstm"}}, None, ["/method"]),
        ({"method": "tinybert", "student": {"architecture": "bigru"}}, None, ["/method"]),
        ({"method": "patient", "student": 9}, None, ["/student/layers"]),
        # The labels are no labels of the task that was named.
        ({"task": "token_classification", "training": {"loss": "dist"}}, "sequence_classification", ["/task"]),
        # Two mistakes.
        ({"method": "patient", "student": 9, "training": {"max_length": 513}}, None, _TWO),
    ],
)
def test_what_only_follows_from_a_mistake_is_not_told_beside_it(
    document: dict[str, Any], data: str | None, pointers: list[str]
) -> None:
    teacher = model_facts(teacher_folder(Teacher(source="builtin:minilm-l6")).path)
    found = preflight.check(DistillConfig.parse(NEEDED | document), teacher=teacher, labels=["a", "b"], task=data)
    assert sorted(one.pointer for one in found) == pointers, found


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ({"method": "patient"}, ["/method"]),
        ({"method": "theseus"}, ["/method"]),
        ({"method": "kd", "student": {"hidden_size": 100}}, ["/student/hidden_size"]),
    ],
)
def test_a_resnet_is_told_once_what_it_lacks(document: dict[str, Any], pointers: list[str]) -> None:
    sizes = {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}
    resnet = config_facts({"model_type": "resnet", **sizes}, parameters=0, bytes=0)
    config = DistillConfig.parse(NEEDED | {"task": "image_classification"} | document)
    found = preflight.check(config, teacher=resnet, labels=["a", "b"])
    assert [one.pointer for one in found] == pointers, found
    assert "a ResNet" in found[0].detail


def test_a_model_of_another_kind_is_told_by_its_type_and_not_by_what_its_file_lacks() -> None:
    """Guards against "no num_hidden_layers" about a GPT-2, which calls them n_layer."""
    with pytest.raises(InvalidModel, match="of the type 'gpt2'; allowed: bert, "):
        config_facts({"model_type": "gpt2", "n_layer": 6, "n_embd": 384}, parameters=0, bytes=0)
