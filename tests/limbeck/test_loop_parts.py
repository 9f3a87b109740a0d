"""Methods of several parts in the training loop: they share its epochs, and resume exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from limbeck.batches import Batch
from limbeck.criterion import Criterion
from limbeck.errors import Interrupted
from limbeck.loop import train
from limbeck.methods.base import Models, Objective, Part, Term
from limbeck.methods.none import FineTuning
from tests.limbeck.bench import Bench, Recorder, assert_equal


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


class _TwoParts(FineTuning):
    """As tinybert and auto are: a first part with an objective and an extra module of its own, selecting nothing."""

    def parts(self) -> tuple[Part, ...]:
        return (Part("projection", share=1 / 3, learning_rate=5.0, selects=False), Part("labels", share=2 / 3))

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return _Projection(models.student) if part.name == "projection" else super().build(part, models, criterion)


class _Projection(Objective):
    def __init__(self, student: Any) -> None:
        self.student = student
        self.projection = nn.Linear(32, 4)
        self.module = nn.ModuleDict({"student": student, "projection": self.projection})

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        states = self.student.base_model(**batch.inputs).last_hidden_state
        mask = batch.inputs["attention_mask"][:, :, None]
        return {"hidden": Term((self.projection(states).square() * mask).sum() / mask.sum(), unit="tokens")}


def test_a_method_of_two_parts_with_a_module_of_its_own_resumes_exactly(bench: Bench, tmp_path: Path) -> None:
    """Guards the promise of ``methods/base.py`` that no method needs a second loop."""
    phase = bench.phase(_TwoParts(), epochs=3)
    assert phase.part_steps() == [6, 12]
    undisturbed = train(phase, bench.run(tmp_path / "whole", phase))
    assert [point["step"] for point in undisturbed.history] == [6, 12, 18]
    for stop in (2, 5, 9, None):
        phase = bench.phase(_TwoParts(), epochs=3)
        run = bench.run(tmp_path / "pieces", phase, Recorder(stop_after=stop))
        try:
            resumed = train(phase, run)
        except Interrupted:
            run.commit()
    assert_equal(resumed.model.state_dict(), undisturbed.model.state_dict())


class _LateDraw(_TwoParts):
    """As fastbert is: what the second part trains starts at random."""

    drawn: ClassVar[list[torch.Tensor]] = []

    def parts(self) -> tuple[Part, ...]:
        return (Part("labels", share=2 / 3), Part("projection", share=1 / 3, selects=False))

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        objective = super().build(part, models, criterion)
        if isinstance(objective, _Projection):
            self.drawn.append(objective.projection.weight.detach().clone())
        return objective


def test_what_a_later_part_draws_hangs_on_the_seed_alone(bench: Bench, tmp_path: Path) -> None:
    """Guards against other branches of fastbert on several devices, or with batches in parts: dropout then draws
    otherwise in the steps before."""
    _LateDraw.drawn.clear()
    for accumulation in (1, 4):
        phase = bench.phase(_LateDraw(), gradient_accumulation=accumulation)
        train(phase, bench.run(tmp_path / str(accumulation), phase))
    other = bench.phase(_LateDraw(), seed=4)
    train(other, bench.run(tmp_path / "other", other))
    one, same, another = _LateDraw.drawn
    assert torch.equal(one, same)
    assert not torch.equal(one, another)


class _Watched(_TwoParts):
    """Notes which examples each part learns from."""

    seen: ClassVar[dict[str, list[int]]] = {}

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        objective, noted = super().build(part, models, criterion), self.seen.setdefault(part.name, [])
        losses = objective.losses

        def watched(batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
            assert batch.places is not None
            noted.extend(batch.places.tolist())
            return losses(batch, step, steps)

        objective.losses = watched  # type: ignore[method-assign]
        return objective


def test_parts_share_an_epoch_without_leaving_an_example_out(bench: Bench, tmp_path: Path) -> None:
    """Guards short trainings: a part that began with the data anew would leave their end to nobody."""
    _Watched.seen.clear()
    phase = bench.phase(_Watched(), epochs=1)
    train(phase, bench.run(tmp_path, phase))
    seen = _Watched.seen
    assert len(seen["projection"]) + len(seen["labels"]) == len(phase.train)
    assert sorted(seen["projection"] + seen["labels"]) == list(range(len(phase.train)))
