"""Training texts without labels: who learns from them, and what refuses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.batches import Batch, Collator
from limbeck.config import DistillConfig, Training
from limbeck.criterion import Criterion
from limbeck.gradients import Cut, backward, trainable
from limbeck.loop import train
from limbeck.methods.base import Method, Part
from limbeck.methods.dynabert import DynaBERT
from limbeck.methods.fastbert import FastBert
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import MiniLM
from limbeck.methods.tinybert import TinyBERT
from limbeck.preflight import check
from tests.limbeck.bench import TASK, Bench

CPU = torch.device("cpu")


def test_texts_without_labels_take_no_part_in_the_hard_loss(tmp_path: Path) -> None:
    """Guards label -1, and the mean: over 10 rows, of which 5 have labels, cut into parts of which some have none."""
    bench = Bench.make(tmp_path)
    train = replace(bench.train, labels=np.where(np.arange(len(bench.train)) < 20, bench.train.labels, -1))
    phase = bench.phase(KnowledgeDistillation(alpha=0.5))
    collate = Collator(train, 0, CPU, phase.teacher_logits, labelled=20)
    objective = phase.method.build(Part(), phase.models, Criterion(TASK))
    objective.student.eval()
    rows = np.array([30, 31, 32, 1, 33, 2, 3, 34, 4, 5])
    found = []
    for accumulation in (1, 4):
        objective.student.zero_grad()
        sums = backward(
            objective, collate, rows, Cut(accumulation), 0, 1, bench.run(tmp_path / str(accumulation), phase)
        )
        found.append([p.grad.clone() for p in objective.student.parameters() if p.grad is not None] + [sums["loss"]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    plain = Collator(train, 0, CPU, phase.teacher_logits)(np.array([1, 2, 3, 4, 5]))
    by_hand = Criterion(TASK).hard(objective.student(**plain.inputs).logits, plain).value
    assert sums["hard_loss"].item() == pytest.approx(by_hand.item(), rel=1e-4)


ANSWERS_FIRST = [MiniLM(), TinyBERT(), FastBert(), DynaBERT()]


@pytest.mark.parametrize("method", ANSWERS_FIRST, ids=lambda method: method.type)
def test_methods_whose_parts_read_no_label_learn_from_texts_without(tmp_path: Path, method: Method) -> None:
    """Guards what stands in place of a label: whatever it is, two steps end with the same weights; and the means, which
    are the same over a batch in parts of which some have no label."""
    bench = Bench.make(tmp_path, rows=16)
    has_label = np.arange(16) < 5
    weights = []
    for number, other in enumerate((-1, 2)):
        texts = replace(bench.train, labels=np.where(has_label, bench.train.labels, other))
        phase = bench.phase(method, train=texts, labelled=5, epochs=1)
        weights.append(train(phase, bench.run(tmp_path / f"run-{number}", phase)).model.state_dict())
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    for index, part in enumerate(method.parts()):
        phase = bench.phase(method, train=texts)
        objective = method.build(part, phase.models, Criterion(TASK))
        objective.module.eval()
        collate = Collator(phase.train, 0, CPU, phase.teacher_logits if part.teacher_logits else None, labelled=5)
        rows, found = np.array([9, 10, 11, 1, 12, 2, 3, 13]), []
        for accumulation in (1, 4):
            objective.module.zero_grad()
            run = bench.run(tmp_path / f"part-{index}-{accumulation}", phase)
            sums = backward(objective, collate, rows, Cut(accumulation), 0, 1, run)
            found.append([p.grad.clone() for p in trainable(objective.module) if p.grad is not None] + [sums["loss"]])
        assert len(found[0]) > 1
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_batch_without_any_label_has_no_hard_loss_and_a_gradient_of_zero() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    labelled = torch.zeros(0, dtype=torch.int64)
    batch = Batch({}, torch.tensor([-1, -1]), None, {"examples": 2, "labelled": 0}, np.arange(2), labelled)
    term = Criterion(TASK).hard(logits, batch)
    torch.autograd.backward(term.value)
    assert (term.value.item(), term.unit) == (0, "labelled")
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "dkd"}, "loss 'dkd'"),
        ({"loss": "annealing"}, "loss 'annealing'"),
        ({"sample_weighting": "focal"}, "sample_weighting 'focal'"),
        ({"sample_weighting": "curriculum"}, "sample_weighting 'curriculum'"),
    ],
)
def test_what_needs_labels_refuses_texts_without(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Training.model_validate({**change, "augmentation": {"type": "unlabelled", "source": "org/texts"}})
    Training.model_validate(
        {
            "sample_weighting": {"type": "curriculum", "by": "entropy"},
            "augmentation": {"type": "unlabelled", "source": "org/texts"},
        }
    )


def test_a_method_without_the_teachers_answers_refuses_texts_without_labels() -> None:
    document = {"teacher": "org/t", "dataset": "org/d", "method": "none"}
    augmentation = ["sentence_shuffle", {"type": "unlabelled", "source": "org/texts"}]
    config = DistillConfig.parse({**document, "training": {"augmentation": augmentation}})
    (problem,) = check(config, teacher=None, labels=None)
    assert problem.pointer == "/training/augmentation/1"
    assert config.data_sources() == {"/dataset/source": "org/d", "/training/augmentation/1/source": "org/texts"}


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        ("auto", False),
        ("dynabert", False),
        ("fastbert", False),
        ({"type": "fastbert", "alpha": 0}, True),
        ({"type": "kd", "alpha": 0}, True),
        ({"type": "noise", "kind": "permuted", "alpha": 0}, True),
        ({"type": "self", "alpha": 0}, True),
        ({"type": "minilm", "alpha": 0}, True),
        ({"type": "patient", "alpha": 0, "beta": 0}, True),
        ({"type": "patient", "alpha": 0}, False),
        ({"type": "distilbert", "soft_weight": 0}, False),
        ("minilm", False),
        ("theseus", True),
        ("tinybert", False),
    ],
)
def test_texts_without_labels_are_refused_where_labels_alone_are_learned(method: Any, refused: bool) -> None:
    """Guards both ways: a part that learns labels alone, and a refusal of methods that read none there."""
    training = {"augmentation": {"type": "unlabelled", "source": "org/texts"}}
    document = {"teacher": "org/t", "dataset": "org/d", "method": method, "training": training}
    found = check(DistillConfig.parse(document), teacher=None, labels=None)
    assert ["labels alone" in one.detail for one in found] == [True] * refused
