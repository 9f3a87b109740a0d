"""No loss looks at its values, which on a GPU would wait for all that was queued.

Tensors on torch's ``meta`` device have no values: whoever looks at one is refused. (What is computed under ``autocast``
there, attention and relations, torch refuses for another reason.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from limbeck.batches import Batch, Collator, Encoded
from limbeck.criterion import Criterion
from limbeck.matching import cosine_distance, hidden_distance, normalised_distance
from limbeck.soft_loss import SoftLoss
from limbeck.tasks.base import Task
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.tasks.token_classification import TokenClassification

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


def test_losses_of_tagged_tokens_look_at_nothing() -> None:
    """Which tokens have a label is known before they are sent to the GPU."""
    tokens = 6
    labels = torch.empty(ROWS, tokens, dtype=torch.int64, device="meta")
    answers, logits = (torch.empty(ROWS, tokens, CLASSES, device="meta") for _ in range(2))
    counts = {"examples": ROWS, "tokens": ROWS * tokens, "labelled": 7}
    one = Batch({}, labels, answers, counts, tagged=torch.empty(7, dtype=torch.int64, device="meta"))
    criterion = Criterion(TokenClassification())
    for term in (criterion.soft(logits, one, 4.0), criterion.hard(logits, one)):
        assert (term.value.shape, term.unit) == ((), "labelled")
    assert criterion.task.owners(one).shape == (7,)


@pytest.mark.parametrize("labelled", [0, 3])
def test_losses_of_texts_without_labels_look_at_nothing(labelled: int) -> None:
    one = replace(
        batch(torch.empty(ROWS, dtype=torch.int64, device="meta")),
        labelled=torch.empty(labelled, dtype=torch.int64, device="meta"),
    )
    term = Criterion(SequenceClassification()).hard(torch.empty(ROWS, CLASSES, device="meta"), one)
    assert (term.value.shape, term.unit) == ((), "labelled")


def test_tagged_tokens_are_those_with_a_label() -> None:
    """Guards the places that are counted before a batch is sent: of texts of unequal length, in another order."""
    labels = np.array([-100, 2, 1, -100, -100, 0, 3, -100], dtype=np.int64)
    data = Encoded(np.arange(8, dtype=np.int32), None, np.array([0, 4, 8]), labels, per_token=True)
    longer = replace(data, ids=np.arange(9, dtype=np.int32), starts=np.array([0, 4, 9]), labels=np.append(labels, 4))
    for split in (data, longer):
        made = Collator(split, 0, torch.device("cpu"))(np.array([1, 0]))
        task, chosen = TokenClassification(), made.labels != -100
        values = torch.randn(*made.labels.shape, CLASSES)
        assert torch.equal(task.rows(values, made), values[chosen])
        assert torch.equal(task.targets(made), made.labels[chosen])
        assert torch.equal(task.owners(made), chosen.nonzero()[:, 0])


def test_losses_of_the_inside_look_at_nothing() -> None:
    ours, theirs = (torch.empty(ROWS, 6, 8, device="meta") for _ in range(2))
    mask = torch.empty(ROWS, 6, dtype=torch.int64, device="meta")
    found = [
        hidden_distance(ours, theirs, mask),
        cosine_distance(ours, theirs, mask),
        normalised_distance(ours[:, 0], theirs[:, 0]),
    ]
    assert all(value.shape == () for value in found)
