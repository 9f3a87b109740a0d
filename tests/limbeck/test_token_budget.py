"""``training.token_budget``: batches of long texts are computed in parts, and nothing else changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.batches import Batch, Collator, Encoded
from limbeck.config import Training
from limbeck.criterion import Criterion
from limbeck.gradients import Cut, backward
from limbeck.loop import train
from limbeck.methods.base import Models, Objective, Part, Term
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.ranks import Ranks
from tests.limbeck.bench import TASK, Bench

CPU = torch.device("cpu")
#: Fewer than eight of the tiny data's texts have together.
BUDGET = 64


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def of_lengths(*lengths: int, together: int = 1) -> Encoded:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(np.zeros(starts[-1], np.int32), None, starts, np.zeros(len(lengths), np.int64), together=together)


@pytest.mark.parametrize(
    ("lengths", "tokens", "devices", "sizes"),
    [
        ([4] * 8, 32, 1, [8]),
        ([4] * 8, 31, 1, [4, 4]),
        ([4] * 7 + [5], 32, 1, [4, 4]),  # one longer text makes all of them longer
        ([4] * 9, 16, 1, [3, 3, 3]),
        ([40, 30, 20], 16, 1, [1, 1, 1]),  # each has more on its own
        ([4] * 8, 32, 2, [4, 4]),
        ([4] * 8, 15, 2, [2, 2, 2, 2]),
        ([4] * 8, 8, 3, [2, 2, 1, 1, 1, 1]),  # as many for each device
    ],
)
def test_no_part_has_more_tokens_than_the_budget_and_none_is_cut_for_nothing(
    lengths: list[int], tokens: int, devices: int, sizes: list[int]
) -> None:
    data = of_lengths(*lengths)
    rows = np.arange(len(lengths))
    parts = data.parts(rows, Cut(tokens=tokens).parts(data, rows, devices))
    assert [len(part) for part in parts] == sizes
    np.testing.assert_array_equal(np.concatenate(parts), rows)


def test_texts_that_stay_together_are_counted_together() -> None:
    data = of_lengths(3, 4, 2, 4, together=2)
    rows = np.arange(4)
    assert Cut(tokens=16).parts(data, rows, 1) == 1
    assert Cut(tokens=15).parts(data, rows, 1) == 2


@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_the_gradient_is_that_of_the_whole_batch(bench: Bench, tmp_path: Path, unit: str) -> None:
    """Guards against a mean of means, which weighs short parts too high."""
    phase = bench.phase(KnowledgeDistillation())
    student = phase.models.student.eval()
    seen: list[int] = []

    class Weighed(Objective):
        module = student

        def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
            seen.append(batch.inputs["input_ids"].numel())
            logits = student(**batch.inputs).logits.logsumexp(dim=1)
            units = batch.inputs["attention_mask"].sum(dim=1) if unit == "tokens" else torch.ones(len(logits))
            return {"loss_of_units": Term((logits * units).sum() / units.sum(), unit=unit)}

    Weighed.student = student
    rows = np.array([0, 11, 22, 33, 44, 5, 16, 27, 38, 9])
    run, collate = bench.run(tmp_path, phase), Collator(bench.train, 0, CPU)
    found = []
    for cut in (Cut(), Cut(tokens=BUDGET)):
        seen.clear()
        student.zero_grad()
        sums = backward(Weighed(), collate, rows, cut, 0, 1, run)
        found.append([p.grad.clone() for p in student.parameters() if p.grad is not None] + [sums["loss"]])
    assert len(seen) > 1
    assert max(seen) <= BUDGET
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class OneOfTwo(Ranks):
    """A rank computed in this process: gradients of both add up in the module by themselves."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 2

    def sum_gradients(self, parameters: Any) -> None:
        return None


def test_two_devices_have_the_gradient_of_one(bench: Bench, tmp_path: Path) -> None:
    phase = bench.phase(KnowledgeDistillation())
    objective = phase.method.build(Part(), phase.models, Criterion(TASK))
    objective.module.eval()
    collate, rows = Collator(bench.train, 0, CPU, phase.teacher_logits), np.arange(11)
    found = []
    for ranks in ((None,), (OneOfTwo(0), OneOfTwo(1))):
        objective.module.zero_grad()
        for rank in ranks:
            run = bench.run(tmp_path / f"{len(found)}-{rank and rank.number}", phase)
            run.ranks = rank or run.ranks
            backward(objective, collate, rows, Cut(tokens=BUDGET), 0, 1, run)
        found.append([p.grad.clone() for p in objective.module.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


class Sober(KnowledgeDistillation):
    """Without dropout, whose draws hang on how a batch is cut."""

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        objective = super().build(part, models, criterion)
        objective.train_mode = objective.module.eval  # type: ignore[method-assign]
        computed = objective.losses

        def losses(batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
            SEEN.append(batch.inputs["input_ids"].numel())
            return computed(batch, step, steps)

        objective.losses = losses  # type: ignore[method-assign]
        return objective


#: Tokens of what :class:`Sober` computed at once.
SEEN: list[int] = []


def test_a_training_within_a_budget_ends_with_the_same_student(bench: Bench, tmp_path: Path) -> None:
    students, most = [], []
    for budget in (None, BUDGET):
        SEEN.clear()
        phase = bench.phase(Sober(), token_budget=budget, epochs=1)
        students.append(train(phase, bench.run(tmp_path / str(budget), phase)).model.state_dict())
        most.append(max(SEEN))
    assert most[0] > BUDGET >= most[1]
    for name, value in students[0].items():
        torch.testing.assert_close(students[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("training", "detail"),
    [
        ({"token_budget": 7}, "greater than or equal to 8"),
        ({"token_budget": 64, "max_length": 128}, "token_budget (64) has to be at least max_length (128)"),
        ({"token_budget": 512, "gradient_accumulation": 2}, "gradient_accumulation (2) cuts all of them"),
        ({"token_budget": 512, "gradient_accumulation": "auto"}, "gradient_accumulation (auto) cuts all of them"),
        ({"token_budget": 512, "sample_weighting": "focal"}, "token_budget (512) has to be left out with sample_weig"),
        ({"token_budget": 512, "loss": "dist"}, "token_budget (512) has to be left out with loss 'dist'"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(training: dict[str, Any], detail: str) -> None:
    with pytest.raises(ValueError, match=re.escape(detail)):
        Training.model_validate(training)
    Training.model_validate({"token_budget": 512, "loss": {"type": "dist", "intra": 0}, "devices": 2})
