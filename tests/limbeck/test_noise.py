"""The control of noisy labels: what is kept of the teacher's answers, and that it is the same in every epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.batches import Batch
from limbeck.criterion import Criterion
from limbeck.errors import Interrupted
from limbeck.loop import train
from limbeck.methods.base import Models, Objective, Part
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.noise import NoisyLabels
from tests.limbeck.bench import Bench, Recorder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(500, 5, generator=torch.Generator().manual_seed(1)) * 3


def rows(values: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in values.tolist())


def test_permuted_labels_are_the_teachers_and_nearly_none_stays_at_its_example(logits: torch.Tensor) -> None:
    """All answers come again, once each, so that the classes are as frequent as with ``kd``."""
    noisy = NoisyLabels().soft_labels(logits, 3)
    assert rows(noisy) == rows(logits)
    assert (noisy == logits).all(dim=1).sum() <= 6  # expected: one


def test_random_labels_are_as_sure_as_the_teacher_of_any_class(logits: torch.Tensor) -> None:
    biased = logits + torch.tensor([6.0, 0, 0, 0, 0])
    noisy = NoisyLabels(kind="random").soft_labels(biased, 3)
    torch.testing.assert_close(noisy.sort(dim=1).values, biased.sort(dim=1).values, rtol=0, atol=0)
    entropies = [torch.distributions.Categorical(logits=values).entropy() for values in (noisy, biased)]
    torch.testing.assert_close(*entropies)
    favourites = torch.bincount(noisy.argmax(dim=1), minlength=5) / 500
    torch.testing.assert_close(favourites, torch.full((5,), 0.2), rtol=0, atol=0.07)  # 4 standard deviations


@pytest.mark.parametrize("kind", ["permuted", "random"])
def test_the_noise_is_the_seeds(logits: torch.Tensor, kind: Any) -> None:
    method, before, state = NoisyLabels(kind=kind), logits.clone(), torch.get_rng_state()
    noisy = method.soft_labels(logits, 3)
    assert torch.equal(noisy, method.soft_labels(logits, 3))
    assert not torch.equal(noisy, method.soft_labels(logits, 4))
    assert torch.equal(logits, before)  # the cache's own tensor
    assert torch.equal(torch.get_rng_state(), state)


class _Watched(NoisyLabels):
    """Notes the soft labels that each example got, by its tokens."""

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        objective = super().build(part, models, criterion)
        inner = objective.losses

        def losses(batch: Batch, step: int, steps: int) -> Any:
            assert batch.teacher_logits is not None
            for ids, label in zip(batch.inputs["input_ids"], batch.teacher_logits, strict=True):
                SEEN.setdefault(tuple(i for i in ids.tolist() if i), []).append(label.tolist())
            return inner(batch, step, steps)

        objective.losses = losses  # type: ignore[method-assign]
        return objective


SEEN: dict[tuple[int, ...], list[list[float]]] = {}


@pytest.mark.parametrize("kind", ["permuted", "random"])
def test_an_example_keeps_its_label_in_every_epoch_and_after_a_resumption(
    bench: Bench, tmp_path: Path, kind: Any
) -> None:
    """Guards against noise that averages out over the epochs, which is smoothing rather than noise."""
    SEEN.clear()
    for stop in (2, 5, 6, None):
        phase = bench.phase(_Watched(kind=kind), epochs=3)
        run = bench.run(tmp_path, phase, Recorder(stop_after=stop))
        try:
            train(phase, run)
        except Interrupted:
            run.commit()
    assert len(SEEN) == len(bench.train)
    assert all(len(labels) == 3 for labels in SEEN.values())
    assert all(label == labels[0] for labels in SEEN.values() for label in labels)
    assert phase.teacher_logits is not None
    if kind == "permuted":
        assert sorted(tuple(labels[0]) for labels in SEEN.values()) == rows(phase.teacher_logits)


def test_it_weighs_as_kd_does_so_that_only_the_labels_differ() -> None:
    shared = {"temperature", "alpha"}
    assert NoisyLabels().model_dump(include=shared) == KnowledgeDistillation().model_dump(include=shared)


def test_a_task_with_one_value_has_no_classes_to_put_in_another_order() -> None:
    def found(kind: Any) -> list[str]:
        method = NoisyLabels(kind=kind)
        return [p.pointer for p in method.problems(classes=1, teacher_layers=6, student_layers=3)]

    assert found("random") == ["/method/kind"]
    assert found("permuted") == []
