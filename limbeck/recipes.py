"""Recipes: configurations with a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from limbeck.errors import InvalidInput, Problem


@dataclass(frozen=True, slots=True)
class Recipe:
    """A configuration to start from; ``document`` may leave out what the user has to choose."""

    name: str
    summary: str
    document: Mapping[str, Any]  #: fields of a :class:`~limbeck.config.DistillConfig`


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        one.name: one
        for one in (
            Recipe(
                "demo",
                "A 6-layer teacher that every install has, distilled to 3 layers on the docstrings of Python's "
                "standard library: needs no network and a few minutes on two cores.",
                {
                    "teacher": {"source": "builtin:minilm-l6", "finetune": {"epochs": 3, "learning_rate": 2e-4}},
                    "dataset": {"source": "builtin:stdlib-docstrings", "limit": 2000},
                    "student": {"layers": 3},
                    # Half the true labels: a teacher that saw so little data leaves room to be better than it.
                    "method": {"type": "kd", "temperature": 2.0, "alpha": 0.5},
                    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-4, "max_length": 32},
                    "export": ["onnx"],
                },
            ),
            Recipe(
                "sst2",
                "BERT-base fine-tuned on SST-2, from the Hugging Face hub, distilled to 6 layers.",
                {
                    "teacher": "textattack/bert-base-uncased-SST-2",
                    "dataset": {"source": "stanfordnlp/sst2", "splits": {"test": "validation"}},
                    "student": {"layers": 6},
                    "method": {"type": "kd", "temperature": 4.0},
                    "training": {"epochs": 3, "batch_size": 32, "learning_rate": 5e-5, "max_length": 128},
                    "export": ["onnx", "onnx-int8"],
                },
            ),
        )
    }
)


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InvalidInput: there is none.
    """
    if name not in RECIPES:
        allowed = ", ".join(RECIPES)
        raise InvalidInput(
            f"There is no recipe {name!r}; allowed: {allowed}.", [Problem("/recipe", f"allowed: {allowed}")]
        )
    return RECIPES[name]
