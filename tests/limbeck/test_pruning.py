"""Which neurons and heads a student's layers keep, by hand; what importance is: ``test_student_plan.py``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.pruning import Part, kept_parts
from limbeck.student_spec import Prune

#: Of each of four layers another neuron, or head, matters most.
NEURONS = torch.tensor([[9.0, 1, 2, 3], [1, 9, 2, 3], [1, 2, 9, 3], [3, 1, 2, 9]])
HEADS = torch.tensor([[5.0, 1], [1, 5], [5, 1], [1, 5]])


def kept(part: Part, importance: dict[str, Tensor], *, layers: int = 4, of: tuple[int, ...] = (1, 3)) -> Any:
    """What a run whose state knows the importance already keeps, of 2 neurons and 1 head in each layer."""
    store = SimpleNamespace(has=importance.__contains__, read_tensors=lambda role: ({"importance": importance[role]},))
    student = SimpleNamespace(shape=SimpleNamespace(layers=of, intermediate_size=2, kept_heads=1))
    run: Any = SimpleNamespace(
        config=SimpleNamespace(student=SimpleNamespace(prune=Prune(neurons=0.5, heads=0.5))),
        store=store,
        first=lambda measured: measured(),
    )
    labelled, blueprint = SimpleNamespace(groups=8), SimpleNamespace(layers=layers)
    job: Any = SimpleNamespace(student=student, labelled=labelled, blueprint=blueprint)
    return [row.tolist() for row in kept_parts(run, job, pytest.fail, part) or ()]


def test_each_layer_keeps_what_matters_in_the_teachers_layer_that_it_is() -> None:
    """Guards against the first layers' importance for a student of others, and against neurons' places for heads:
    either prunes what matters, and the student is only worse."""
    known = {"pruning": NEURONS, "pruning-heads": HEADS}
    assert kept("neurons", known) == [[1, 3], [0, 3]]
    assert kept("heads", known) == [[1], [1]]
    assert kept("heads", known, of=(2,)) == [[0]]


def test_layers_that_are_one_keep_what_matters_in_that_one() -> None:
    assert kept("neurons", {"pruning": NEURONS[2:3]}, of=(1, 3)) == [[2, 3]]
