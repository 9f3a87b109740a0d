"""What ``student`` says of sizes: what it means of a teacher, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    BertConfig,
)

from limbeck.config import Student
from limbeck.errors import InvalidConfig
from limbeck.model_folder import ModelFacts
from limbeck.shapes import PRESETS, Shape, problems, resolve

MINILM = ModelFacts("BertModel", "bert", 6, 384, None, False, 0, 0, 512, heads=12, intermediate_size=1536)
BASE = ModelFacts("BertModel", "bert", 12, 768, None, False, 0, 0, 512, heads=12, intermediate_size=3072)
MODERN = ModelFacts("ModernBertModel", "modernbert", 22, 768, None, False, 0, 0, 8192, heads=12, intermediate_size=1152)


@pytest.mark.parametrize(
    ("options", "origin", "expected"),
    [
        ({"hidden_size": 192}, MINILM, Shape((0, 2, 4), 3, 192, 768, 6, 192)),
        ({"preset": "T3-small"}, MINILM, Shape((0, 2, 4), 3, 384, 1536, 12, 384)),
        ({"preset": "T4-tiny", "init": "first"}, BASE, Shape((0, 1, 2, 3), 4, 312, 1200, 12, 312)),
        ({"preset": "T12-nano"}, BASE, Shape(tuple(range(12)), 12, 256, 1024, 4, 256)),
        ({"preset": "T6"}, BASE, Shape((0, 2, 4, 6, 8, 10), 6, 768, 3072, 12, 768)),
        ({"layers": 2, "prune": 0.5}, MINILM, Shape((2, 5), 2, 384, 768, 12, 384)),
        ({"layers": 1, "hidden_size": 200}, MINILM, Shape((5,), 1, 200, 800, 10, 200)),
        ({"architecture": "bigru"}, MINILM, Shape((), 1, 256, 0, 0, 384)),
    ],
)
def test_shapes_are_resolved_as_documented(options: dict[str, Any], origin: ModelFacts, expected: Shape) -> None:
    assert resolve(Student(**options), origin) == expected


@pytest.mark.parametrize(
    ("options", "origin", "pointer", "detail"),
    [
        ({"hidden_size": 512}, MINILM, "/student/hidden_size", "teacher's is 384"),
        ({"hidden_size": 100, "heads": 12}, MINILM, "/student/heads", "1, 2, 4, 5, 10"),
        ({"heads": 7}, MINILM, "/student/heads", "does not divide"),
        ({"intermediate_size": 2000}, MINILM, "/student/intermediate_size", "has 1536"),
        ({"preset": "T12-nano"}, MINILM, "/student/preset", "has 12 layers; the teacher has 6"),
        ({"preset": "T3"}, MINILM, "/student/preset", "a width of 768; the teacher's is 384"),
        ({"embedding_size": 64}, MINILM, "/student/embedding_size", "albert, deberta-v2, electra"),
        ({"hidden_size": 360}, MODERN, "/student/hidden_size", "multiple of 64"),
        ({"architecture": "bilstm", "embedding_size": 400}, MINILM, "/student/embedding_size", "384 wide"),
        ({"source": "some/model", "layers": 7}, MINILM, "/student/layers", "the student's source has 6 layers"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_naming_the_field(
    options: dict[str, Any], origin: ModelFacts, pointer: str, detail: str
) -> None:
    (problem,) = problems(Student(**options), origin)
    assert problem.pointer == pointer
    assert detail in problem.detail
    with pytest.raises(InvalidConfig):
        resolve(Student(**options), origin)


def test_presets_are_sizes_that_transformers_builds() -> None:
    for preset in PRESETS.values():
        config = BertConfig(
            hidden_size=preset.hidden_size, num_attention_heads=preset.heads, intermediate_size=preset.intermediate_size
        )
        assert config.hidden_size % config.num_attention_heads == 0


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "T3", "layers": 3},
        {"preset": "T3", "hidden_size": 384},
        {"source": "some/model", "hidden_size": 128},
        {"architecture": "bilstm", "layers": [1, 2]},
        {"architecture": "bigru", "heads": 4},
        {"prune": 0.5, "intermediate_size": 100},
        {"prune": 0.5, "start": "random"},
        {"revision": "main"},
        {"prune": 1.0},
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"leave one of them out|give their number|not given|less than 1"):
        Student(**options)
