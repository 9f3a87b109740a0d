"""Losses of the tasks against constants worked out by hand, and which rows they are over."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from limbeck import data, evaluate
from limbeck.batches import Batch, Collator, Encoded
from limbeck.config import TASKS, Dataset
from limbeck.criterion import Criterion
from limbeck.data.corpus import Corpus
from limbeck.errors import Diverged
from limbeck.losses import binary_hard_losses, binary_soft_losses, squared_losses
from limbeck.soft_loss import Annealing, BaseLoss, JensenShannon, KullbackLeibler, ReverseKL
from limbeck.tasks.question_answering import QuestionAnswering
from tests.limbeck.task_data import EXAMPLES, write
from tests.tiny import write_tiny_bert

CPU = torch.device("cpu")


def test_binary_cross_entropy_by_hand() -> None:
    """Guards against a sum over labels, beside which no weight would mean the same for 2 and for 28 of them."""
    logits, targets = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    # -ln 1/2, and -ln (1 - 3/4)
    assert binary_hard_losses(logits, targets).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_binary_divergence_by_hand() -> None:
    """Guards T² and the temperature on both sides: at T = 2 the teacher says 3/4, the student 1/2."""
    student, teacher = torch.zeros(1, 1), torch.tensor([[2 * math.log(3)]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert binary_soft_losses(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert binary_soft_losses(teacher, teacher, 2.0).item() == 0
    huge = torch.tensor([[200.0]])
    assert math.isfinite(binary_soft_losses(-huge, huge, 1.0).item())


def test_each_row_has_the_mean_of_its_own_values() -> None:
    """Guards against a mean over the batch, a sum over the values, and T² that is 2T (which it is at T = 2)."""
    logits, targets = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    by_hand = [(math.log(2) + math.log(4)) / 2, (math.log(4 / 3) + math.log(2)) / 2]
    assert binary_hard_losses(logits, targets).tolist() == pytest.approx(by_hand)
    teacher = torch.tensor([[0.0, 4 * math.log(3)], [0.0, 0.0]])
    soft = binary_soft_losses(torch.zeros(2, 2), teacher, 4.0)
    assert soft.tolist() == pytest.approx([16 * 0.130812 / 2, 0], abs=1e-5)
    assert squared_losses(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2)).tolist() == [5.0, 0.0]


def test_answers_in_half_precision_are_compared_in_float32() -> None:
    """Guards against bfloat16, in which a year is off by eight and the last differences are rounded away."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(4, 3, generator=draw).bfloat16() for _ in range(2))
    for found, whole in (
        (binary_hard_losses(ours, theirs > 0), binary_hard_losses(ours.float(), (theirs > 0).float())),
        (binary_soft_losses(ours, theirs, 3.0), binary_soft_losses(ours.float(), theirs.float(), 3.0)),
        (squared_losses(ours, theirs), squared_losses(ours.float(), theirs.float())),
    ):
        torch.testing.assert_close(found, whole, rtol=0, atol=0)


def test_squares_by_hand() -> None:
    assert squared_losses(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.5], [3.0]])).tolist() == [2.25, 0.0]


def test_losses_refuse_broadcasting_and_nan() -> None:
    """Guards against (N, 1) against (N,), whose square is a matrix that trains to the mean."""
    with pytest.raises(ValueError, match="same shape"):
        squared_losses(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="same shape"):
        squared_losses(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="same shape"):
        binary_soft_losses(torch.zeros(2, 3), torch.zeros(2, 1), 1.0)
    with pytest.raises(ValueError, match="same shape"):
        binary_hard_losses(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(Diverged):
        squared_losses(torch.zeros(1, 1), torch.tensor([[float("nan")]]))
    with pytest.raises(Diverged):
        binary_soft_losses(torch.zeros(1, 1), torch.tensor([[float("inf")]]), 1.0)


@pytest.fixture(scope="module", params=list(EXAMPLES))
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = write(request.param, tmp_path_factory.mktemp("data"), rows=24)
    return data.load(Dataset(source=f"path:{folder}"), seed=1)


@pytest.fixture(scope="module")
def encoded(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_bert(tmp_path_factory.mktemp("teacher")))
    return TASKS[corpus.task]().encode(tokenizer, corpus.train, corpus.labels, 16, lambda: None)


def logits_for(task: str, encoded: Encoded, labels: int, seed: int = 0) -> torch.Tensor:
    outputs = {"regression": 1, "question_answering": 2}.get(task, labels)
    rows = len(encoded.ids) if encoded.per_token else len(encoded)
    return torch.randn(rows, outputs, generator=torch.Generator().manual_seed(seed))


def batch_of(encoded: Encoded, logits: torch.Tensor, rows: list[int]) -> Batch:
    return Collator(encoded, 0, CPU, logits)(np.array(rows))


def test_a_loss_for_each_row_and_none_for_padding(corpus: Corpus, encoded: Encoded) -> None:
    """Guards against padding, special tokens and later pieces in a loss, and teacher's logits beside their tokens:
    alone and in a batch of longer ones, an example has the same losses."""
    task, logits = TASKS[corpus.task](), logits_for(corpus.task, encoded, len(corpus.labels))
    teacher = logits_for(corpus.task, encoded, len(corpus.labels), seed=1)
    order = [int(np.argmin(encoded.lengths)), int(np.argmax(encoded.lengths))]
    together = batch_of(encoded, teacher, order)
    ours = batch_of(encoded, logits, order).teacher_logits
    assert ours is not None
    assert together.teacher_logits is not None
    losses = {
        "soft": task.soft_losses(task.rows(ours, together), task.rows(together.teacher_logits, together), 2.0),
        "hard": task.hard_losses(task.rows(ours, together), task.targets(together)),
    }
    owners = task.owners(together)
    owners = torch.arange(2) if owners is None else owners
    assert len(owners) == len(losses["soft"]) == len(losses["hard"])
    for place, row in enumerate(order):
        alone = batch_of(encoded, teacher, [row])
        own = batch_of(encoded, logits, [row]).teacher_logits
        assert own is not None
        assert alone.teacher_logits is not None
        soft = task.soft_losses(task.rows(own, alone), task.rows(alone.teacher_logits, alone), 2.0)
        hard = task.hard_losses(task.rows(own, alone), task.targets(alone))
        torch.testing.assert_close(losses["soft"][owners == place], soft)
        torch.testing.assert_close(losses["hard"][owners == place], hard)


QA_LOSSES = [
    KullbackLeibler(),
    ReverseKL(),
    *(JensenShannon(beta=beta) for beta in (0, 0.5, 1)),
    Annealing(),
    Annealing(share=0.1),  # past its first phase: the labels
]


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("loss", QA_LOSSES, ids=lambda loss: f"{loss.type}-{getattr(loss, 'beta', '')}")
def test_padding_changes_neither_loss_nor_gradient_of_places(loss: BaseLoss, temperature: float) -> None:
    """Guards every loss between places of a text: padding has a logit of its own, far below all others, whose squared
    distance was thirty million times that of the text."""
    task = QuestionAnswering()
    assert not [*loss.problems(task=task, classes=None)]
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 2, generator=draw) for _ in range(2))
    found = []
    for padding in (0, 6):
        student = torch.cat([ours, torch.zeros(2, padding, 2)], dim=1).requires_grad_()
        teacher = torch.cat([theirs, torch.zeros(2, padding, 2)], dim=1)
        mask = torch.ones(2, 5 + padding, dtype=torch.long)
        mask[:, 5:] = 0
        inputs, counts = {"attention_mask": mask}, {"examples": 2}
        batch = Batch(inputs, torch.tensor([[0, 1], [2, 4]]), teacher, counts, np.arange(2))
        term = Criterion(task, loss).soft(student, batch, temperature, progress=0.2)
        term.value.backward()
        assert student.grad is not None
        assert not student.grad[:, 5:].any()
        found.append((term.value.detach(), student.grad[:, :5]))
    assert found[0][0] > 0
    assert found[0][1].any()
    torch.testing.assert_close(found[1], found[0])


def test_a_student_that_answers_as_its_teacher_has_no_soft_loss(corpus: Corpus, encoded: Encoded) -> None:
    teacher = logits_for(corpus.task, encoded, len(corpus.labels))
    batch = batch_of(encoded, teacher, [0, 1, 2])
    assert batch.teacher_logits is not None
    criterion = Criterion(TASKS[corpus.task]())
    assert criterion.soft(batch.teacher_logits, batch, 3.0).value.item() == pytest.approx(0, abs=1e-6)
    assert criterion.soft(batch.teacher_logits, batch, 3.0).unit in batch.counts


def test_true_answers_are_perfect(corpus: Corpus, encoded: Encoded) -> None:
    """Guards the way from tokens back to words and characters: logits that say the truth get every metric right, where
    nothing was cut."""
    task = TASKS[corpus.task]()
    whole = encoded
    if encoded.per_token:
        whole = encoded.take([one for one in range(encoded.examples) if len(encoded.rows_of([one])) == 1])
        whole = whole.take(np.flatnonzero(whole.lengths < 16))
    logits = np.zeros(((len(whole.ids) if whole.per_token else len(whole)), max(2, len(corpus.labels))), np.float32)
    match corpus.task:
        case "multi_label":
            logits = whole.labels * 2.0 - 1.0
        case "regression":
            logits = whole.labels[:, None]
        case "token_classification":
            logits[np.arange(len(logits)), np.maximum(whole.labels, 0)] = 1
        case _:
            for row, start in enumerate(whole.starts[:-1]):
                logits[start + whole.labels[row], [0, 1]] = 1
    found = task.predictions(logits.astype(np.float32), whole)
    for metric in task.metrics:
        perfect = 0 if metric == "rmse" else 1
        assert evaluate.score(metric, found, task.truth(whole)) == pytest.approx(perfect), metric


def test_a_split_survives_its_checkpoint(corpus: Corpus, encoded: Encoded, tmp_path: Path) -> None:
    """Guards a resumed run, which would be judged by other words than those that it was trained on."""
    again = Encoded.from_tensors(encoded.tensors())
    for name in ("ids", "starts", "labels", "owners", "places", "segments"):
        np.testing.assert_array_equal(getattr(again, name), getattr(encoded, name))
    assert again.per_token == encoded.per_token
    assert {k: list(v) for k, v in again.facts.items()} == {k: list(v) for k, v in encoded.facts.items()}
    assert list(again.strings) == list(encoded.strings)
    logits = logits_for(corpus.task, encoded, len(corpus.labels)).numpy()
    task = TASKS[corpus.task]()
    assert list(map(str, task.predictions(logits, again))) == list(map(str, task.predictions(logits, encoded)))
