"""What several teachers answer together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.batches import Collator, Encoded
from limbeck.criterion import Criterion
from limbeck.ensemble import Ensemble
from limbeck.soft_loss import BaseLoss, Correlation, DecoupledDistillation, JensenShannon, KullbackLeibler, ReverseKL
from limbeck.tasks.base import Task
from limbeck.tasks.embeddings import Embeddings
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.question_answering import QuestionAnswering
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification
from tests.limbeck.bench import Bench

ONE = SequenceClassification()
LN3 = float(np.log(3))


def together(members: list[Tensor], temperature: float = 1.0, combine: Any = "mean", task: Task = ONE) -> Tensor:
    return Ensemble(len(members), combine).logits(task, members, temperature)


def test_the_mean_is_of_softened_distributions() -> None:
    """Guards against a mean of logits, and of distributions that were softened at another temperature. By hand:
    (3/4, 1/4) and (1/2, 1/2) are (5/8, 3/8) at T = 1; at T = 2 the first is (0.633975, 0.366025)."""
    members = [torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)]
    assert together(members).softmax(dim=1).tolist() == [pytest.approx([0.625, 0.375])]
    warm = together(members, temperature=2.0) / 2
    assert warm.softmax(dim=1).tolist() == [pytest.approx([0.5669873, 0.4330127])]
    student = torch.zeros(1, 2)
    at_one = KullbackLeibler().losses(ONE, student, together(members), torch.zeros(1), 1.0, 0.0)
    at_two = KullbackLeibler().losses(ONE, student, together(members, 2.0), torch.zeros(1), 2.0, 0.0)
    assert at_one.item() == pytest.approx(0.0315838, abs=1e-6)
    assert at_two.item() == pytest.approx(0.0360066, abs=1e-6)


def test_the_surer_teacher_counts_more() -> None:
    """Guards the weights, by hand: (3/4, 1/4) has 0.811278 of the entropy that two classes can have, so 0.188722
    against 1 of a teacher that is sure: 0.158761 and 0.841239 of the whole."""
    members = [torch.tensor([[LN3, 0.0]]), torch.tensor([[-30.0, 30.0]])]
    chances = together(members, combine="confidence").softmax(dim=1)
    assert chances.tolist() == [pytest.approx([0.158761 * 0.75, 1 - 0.158761 * 0.75], abs=1e-5)]
    unsure = together([torch.zeros(1, 2), torch.ones(1, 2)], combine="confidence").softmax(dim=1)
    assert unsure.tolist() == [pytest.approx([0.5, 0.5])]
    # The temperature softens the answers and not the confidence.
    warm = (together(members, 2.0, "confidence") / 2).softmax(dim=1)
    assert warm[0, 0].item() == pytest.approx(0.158761 * 0.6339746, abs=1e-5)


def test_yes_or_no_and_numbers_have_means_of_their_own() -> None:
    """Guards against a softmax over labels that do not exclude each other, and over a single number."""
    members = [torch.tensor([[LN3, 0.0]]), torch.tensor([[-LN3, 0.0]])]
    assert together(members, task=MultiLabel()).sigmoid().tolist() == [pytest.approx([0.5, 0.5])]
    # Of yes and no: entropies (0.811278 + 1) / 2 for both, hence alike; a teacher sure of both labels outweighs them.
    sure = [torch.tensor([[LN3, 0.0]]), torch.tensor([[30.0, 30.0]])]
    chances = together(sure, task=MultiLabel(), combine="confidence").sigmoid()
    weight = 0.094361 / 1.094361
    assert chances.tolist() == [pytest.approx([1 - weight * 0.25, 1 - weight * 0.5], abs=1e-5)]
    assert together([torch.tensor([[1.0]]), torch.tensor([[4.0]])], task=Regression()).tolist() == [[2.5]]


def test_of_vectors_it_is_their_mean_at_length_1() -> None:
    """Guards the loss of vectors, 2 - 2 · cosine, which a mean that is shorter than 1 would not be."""
    members = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])]
    assert together(members, task=Embeddings()).tolist() == [pytest.approx([2 / 5**0.5, 1 / 5**0.5])]


def _windows() -> Encoded:
    """One question in two windows, of 3 and of 5 tokens."""
    return Encoded(
        np.arange(8, dtype=np.int32),
        None,
        np.array([0, 3, 8]),
        np.array([[0, 0], [2, 3]]),
        per_token=True,
        owners=np.array([0, 0]),
        places=np.tile(np.array([[0, 1]], np.int32), (8, 1)),
    )


def test_start_and_end_have_the_mean_of_their_windows_tokens() -> None:
    """Guards against a softmax over start and end, and over the tokens of all windows; and against windows that are no
    longer comparable, of which the best span would be a matter of chance."""
    drawn = torch.Generator().manual_seed(0)
    one, other = (3 * torch.randn(8, 2, generator=drawn) for _ in range(2))
    ensemble, data, task = Ensemble(2), _windows(), QuestionAnswering()
    found = ensemble.over(task, torch.cat([one, other], dim=1), data)
    assert found.shape == (8, 2)
    for window in (slice(0, 3), slice(3, 8)):
        wanted = (one[window].softmax(dim=0) + other[window].softmax(dim=0)) / 2
        torch.testing.assert_close(found[window].softmax(dim=0), wanted)
        heights = (one[window].logsumexp(dim=0) + other[window].logsumexp(dim=0)) / 2
        torch.testing.assert_close(found[window].logsumexp(dim=0), heights)
    torch.testing.assert_close(ensemble.over(task, torch.cat([one, one], dim=1), data), one)


@pytest.mark.parametrize("combine", ["mean", "confidence"])
def test_padding_takes_no_part_in_what_windows_answer(combine: Any) -> None:
    """Guards a confidence that hangs on the longest window of a batch; by hand, the weights of a window's starts are
    by entropy over the logarithm of its own tokens."""
    drawn = torch.Generator().manual_seed(1)
    answers = torch.cat([4 * torch.randn(8, 2, generator=drawn), torch.randn(8, 2, generator=drawn)], dim=1)
    ensemble, data, task = Ensemble(2, combine), _windows(), QuestionAnswering()
    batch = Collator(data, 0, torch.device("cpu"), answers)(np.array([0, 1]))
    assert batch.teacher_logits is not None
    rows = Criterion(task, ensemble=ensemble).teacher_rows(batch)  # starts of both windows, then ends
    whole = ensemble.over(task, answers, data)
    for row, (window, column) in enumerate(((slice(0, 3), 0), (slice(3, 8), 0), (slice(0, 3), 1), (slice(3, 8), 1))):
        length = window.stop - window.start
        torch.testing.assert_close(rows[row, :length].softmax(dim=0), whole[window, column].softmax(dim=0))
        assert not rows[row].softmax(dim=0)[length:].any()
    if combine == "confidence":
        chances = [answers[:3, column].softmax(dim=0) for column in (0, 2)]
        sure = [1 + float((one * one.log()).sum()) / LN3 for one in chances]
        wanted = (sure[0] * chances[0] + sure[1] * chances[1]) / sum(sure)
        torch.testing.assert_close(rows[0, :3].softmax(dim=0), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "loss", [KullbackLeibler(), ReverseKL(), JensenShannon(), DecoupledDistillation(), Correlation()]
)
@pytest.mark.parametrize("combine", ["mean", "confidence"])
def test_equal_teachers_teach_as_one(tmp_path: Path, loss: BaseLoss, combine: Any) -> None:
    """Guards every loss that several teachers are allowed: what is exact for their distribution is exact for one's."""
    bench = Bench.make(tmp_path, rows=24)
    logits = torch.randn(len(bench.train), 3, generator=torch.Generator().manual_seed(1))
    student = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))

    def value(teachers: Tensor, ensemble: Ensemble | None) -> float:
        batch = Collator(bench.train, 0, torch.device("cpu"), teachers)(np.arange(8))
        return Criterion(ONE, loss, ensemble=ensemble).soft(student, batch, 3.0).value.item()

    three = torch.cat([logits, logits, logits], dim=1)
    assert value(three, Ensemble(3, combine)) == pytest.approx(value(logits, None), rel=1e-5)
