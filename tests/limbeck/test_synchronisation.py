"""No loss looks at its values, which on a GPU would wait for all that was queued.

Tensors on torch's ``meta`` device have no values: whoever looks at one is refused. (What is computed under ``autocast``
there, attention and relations, torch refuses for another reason.)
"""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from limbeck.batches import Batch
from limbeck.criterion import Criterion
from limbeck.matching import cosine_distance, hidden_distance, normalised_distance
from limbeck.soft_loss import SoftLoss
from limbeck.tasks.base import Task
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification

ROWS, CLASSES = 4, 5


def batch(labels: torch.Tensor) -> Batch:
    counts = {"examples": ROWS, "tokens": 3 * ROWS}
    answers = torch.empty(ROWS, CLASSES if labels.dim() == 2 or not labels.is_floating_point() else 1, device="meta")
    return Batch({}, labels, answers, counts)


def test_a_look_at_such_a_tensor_is_refused() -> None:
    """Guards the other tests here: without it they could not fail."""
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.empty(3, device="meta").isnan().any())


@pytest.mark.parametrize("loss", ["kl", "reverse_kl", "jsd", "dkd", "dist", "logit_standardisation", "annealing"])
def test_losses_of_classes_look_at_nothing(loss: str) -> None:
    chosen = TypeAdapter[SoftLoss](SoftLoss).validate_python({"type": loss})
    criterion = Criterion(SequenceClassification(), chosen)
    one = batch(torch.empty(ROWS, dtype=torch.int64, device="meta"))
    logits = torch.empty(ROWS, CLASSES, device="meta", requires_grad=True)
    for term in (criterion.soft(logits, one, 4.0, progress=0.5), criterion.hard(logits, one)):
        assert term.value.shape == ()


@pytest.mark.parametrize(("task", "width"), [(MultiLabel(), CLASSES), (Regression(), 1)])
def test_losses_of_other_tasks_look_at_nothing(task: Task, width: int) -> None:
    shape = (ROWS, width) if width > 1 else (ROWS,)
    one = batch(torch.empty(shape, device="meta"))
    logits = torch.empty(ROWS, width, device="meta", requires_grad=True)
    criterion = Criterion(task)
    for term in (criterion.soft(logits, one, 4.0), criterion.hard(logits, one)):
        assert term.value.shape == ()


def test_losses_of_the_inside_look_at_nothing() -> None:
    ours, theirs = (torch.empty(ROWS, 6, 8, device="meta") for _ in range(2))
    mask = torch.empty(ROWS, 6, dtype=torch.int64, device="meta")
    found = [
        hidden_distance(ours, theirs, mask),
        cosine_distance(ours, theirs, mask),
        normalised_distance(ours[:, 0], theirs[:, 0]),
    ]
    assert all(value.shape == () for value in found)
