"""What examples count: weights worked out by hand, their mean, and the gradient when a batch is cut into parts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

from limbeck.batches import Batch, Collator
from limbeck.config import Training
from limbeck.criterion import Criterion
from limbeck.difficulty import entropies, example_means, ranks, right_rows
from limbeck.errors import Interrupted
from limbeck.gradients import Cut, backward
from limbeck.loop import train
from limbeck.methods.auto import Auto
from limbeck.methods.base import Method, Part
from limbeck.methods.dynabert import DynaBERT
from limbeck.methods.fastbert import FastBert
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import MiniLM
from limbeck.methods.none import FineTuning
from limbeck.methods.tinybert import TinyBERT
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.weighting import Curriculum, Disagreement, Entropy, Focal, SampleWeighting
from tests.limbeck.bench import TASK, Bench, Recorder

CPU = torch.device("cpu")
#: Softmax: (3/4, 1/4), (1/2, 1/2) and (1/4, 3/4).
LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, math.log(3.0)]])


def _batch(labels: list[int], teacher: Tensor | None = None) -> Batch:
    return Batch({}, torch.tensor(labels), teacher, {"examples": len(labels)}, np.arange(len(labels)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def test_focal_weights_are_those_worked_out_by_hand() -> None:
    """p of the truth is 3/4, 1/2 and 1/4: squares of 1/4, 1/2 and 3/4 are as 1 : 4 : 9, whose mean is 14/3."""
    losses = [math.log(4 / 3), math.log(2), math.log(4)]
    expected = sum(weight * loss for weight, loss in zip((3 / 14, 12 / 14, 27 / 14), losses, strict=True)) / 3
    found = Criterion(TASK, weighting=Focal()).hard(LOGITS, _batch([0, 0, 0]))
    assert found.value.item() == pytest.approx(expected, abs=1e-4)


def test_disagreement_weighs_by_the_divergence_from_the_teacher() -> None:
    """The divergences of (3/4, 1/4) from (1/2, 1/2), and of (1/2, 1/2) from (1/4, 3/4), are 0.130812 and 0.143841, the
    other way round the other one: guards their direction, and T = 1."""
    teacher = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])
    found = Criterion(TASK, weighting=Disagreement()).hard(LOGITS, _batch([0, 0, 0], teacher))
    expected = (0.130812 * math.log(2) + 0.143841 * math.log(4)) / (0.130812 + 0.143841)
    assert found.value.item() == pytest.approx(expected, abs=1e-4)


def test_entropy_weighs_by_how_unsure_the_teacher_is() -> None:
    teacher = torch.tensor([[50.0, -50.0], [0.0, 0.0], [50.0, -50.0]])
    criterion = Criterion(TASK, weighting=Entropy())
    (batch,) = criterion.weigh([_batch([0, 0, 0], teacher)], 0.0)
    assert batch.weights is not None
    assert batch.weights.tolist() == pytest.approx([0, 3, 0], abs=1e-4)
    assert criterion.hard(LOGITS, batch).value.item() == pytest.approx(math.log(2), abs=1e-4)
    soft = criterion.soft(LOGITS, batch, 1.0)
    assert soft.value.item() == pytest.approx(0, abs=1e-4)


def test_entropies_are_those_worked_out_by_hand() -> None:
    assert entropies(TASK, LOGITS).tolist()[:2] == pytest.approx([0.562335, math.log(2)], abs=1e-6)

    class Yes(SequenceClassification):
        kind = "binary"

    found = entropies(Yes(), torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]))
    assert found.tolist() == pytest.approx([(math.log(2) + 0.562335) / 2, math.log(2)], abs=1e-6)


def test_an_example_is_right_where_all_its_answers_are() -> None:
    """Guards the tables of hard samples, and a number that is taken for a class: both would say something."""

    class Yes(SequenceClassification):
        kind = "binary"

    class Number(SequenceClassification):
        kind = "value"

    assert right_rows(TASK, LOGITS, torch.tensor([0, 1, 1])).tolist() == [True, False, True]
    decided = torch.tensor([[1.0, -1.0], [1.0, 1.0], [0.5, -0.5]])
    assert right_rows(Yes(), decided, torch.tensor([[1.0, 0.0]] * 3)).tolist() == [True, False, True]
    for refused in (lambda: right_rows(Number(), LOGITS, torch.zeros(3)), lambda: entropies(Number(), LOGITS)):
        with pytest.raises(ValueError, match="is a number"):
            refused()
    # Of an example without rows, such as a text whose words are all cut off, nothing is known: 0, and not NaN.
    assert example_means(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), 2).tolist() == [2, 0]


def test_a_curriculum_orders_by_what_it_was_told_to() -> None:
    """Guards ``by``: entropy and loss disagree about the third example, which the teacher has wrong and is sure of."""
    found = {
        by: Curriculum(by=by).difficulties(TASK, None, LOGITS, torch.tensor([0, 0, 0])) for by in ("loss", "entropy")
    }
    assert found["loss"].tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)])
    assert found["entropy"].tolist() == pytest.approx([0.562335, math.log(2), 0.562335], abs=1e-6)
    weights = Curriculum(start=0.2).weights(torch.tensor([0.1, 0.2, 0.25, 0.3]), 0.0)
    assert weights.tolist() == pytest.approx([1, 1, math.exp(-1), math.exp(-2)])


def test_a_batch_in_which_nothing_is_hard_has_equal_weights() -> None:
    """Guards 0 / 0: student and teacher agree about everything."""
    found = Criterion(TASK, weighting=Disagreement()).hard(LOGITS, _batch([0, 0, 0], LOGITS.clone()))
    assert found.value.item() == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(4)) / 3, abs=1e-5)


def test_weights_carry_no_gradient() -> None:
    """Guards against a student that learns to look hard, or easy, instead of learning the answer."""
    logits = LOGITS.clone().requires_grad_()
    torch.autograd.backward(Criterion(TASK, weighting=Focal()).hard(logits, _batch([0, 0, 0])).value)
    wanted = torch.tensor([3 / 14, 12 / 14, 27 / 14])[:, None] * (LOGITS.softmax(1) - torch.tensor([1.0, 0.0])) / 3
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, wanted, rtol=1e-4, atol=1e-5)


def test_all_rows_of_an_example_count_alike_and_the_mean_over_rows_is_one() -> None:
    """Guards tasks with several rows in an example, such as tokens: three rows of the first, one of the second."""

    class Tokens(SequenceClassification):
        def rows(self, values: Tensor, batch: Batch) -> Tensor:
            return values.repeat_interleave(torch.tensor([3, 1]), dim=0)

        def targets(self, batch: Batch) -> Tensor:
            return batch.labels.repeat_interleave(torch.tensor([3, 1]))

        def owners(self, batch: Batch) -> Tensor:
            return torch.tensor([0, 0, 0, 1])

    # (1 - p)² is 1/16 and 1/4: over the rows 1/16, 1/16, 1/16, 1/4 their mean is 7/64, the weights 4/7 and 16/7.
    found = Criterion(Tokens(), weighting=Focal()).hard(LOGITS[:2], _batch([0, 0]))
    assert found.value.item() == pytest.approx((3 * 4 / 7 * math.log(4 / 3) + 16 / 7 * math.log(2)) / 4, abs=1e-4)


@pytest.mark.parametrize("weighting", [Entropy(), Disagreement()])
def test_the_weights_of_texts_with_a_label_have_mean_one_among_these(weighting: SampleWeighting) -> None:
    """Guards the hard loss, which shrank as a whole where the texts without labels are the harder ones; also where a
    batch is cut into parts."""
    teacher = torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.1, 0.0], [0.0, 0.0]])
    student = LOGITS[[0, 1, 2, 0]]
    whole = replace(_batch([0, 1, 0, 0], teacher), labelled=torch.tensor([0, 1]))
    criterion = Criterion(TASK, weighting=weighting)
    (batch,) = criterion.weigh([whole], 0.0)
    found = criterion.hard(student, batch)
    difficulty = weighting.difficulties(TASK, student, teacher, whole.labels)[:2]
    losses = torch.nn.functional.cross_entropy(student[:2], whole.labels[:2], reduction="none")
    assert found.value.item() == pytest.approx(float((difficulty / difficulty.mean() * losses).mean()), rel=1e-3)
    if weighting.by_student:
        return
    parts = [
        replace(_batch([label], teacher[row : row + 1]), labelled=torch.arange(int(row < 2)))
        for row, label in enumerate([0, 1, 0, 0])
    ]
    each = [criterion.hard(student[row : row + 1], part) for row, part in enumerate(criterion.weigh(parts, 0.0))]
    assert float(each[0].value + each[1].value) / 2 == pytest.approx(found.value.item(), rel=1e-5)
    assert float(each[2].value) == 0


@pytest.mark.parametrize("weighting", [Entropy(), Curriculum(), Curriculum(by="entropy", pacing="linear")])
def test_accumulated_gradients_equal_those_of_the_whole_batch(
    bench: Bench, tmp_path: Path, weighting: SampleWeighting
) -> None:
    """8 × 1 against 2 × 4: guards against weights that are normalised in each part, not in the batch."""
    phase = bench.phase(KnowledgeDistillation())
    run = bench.run(tmp_path, phase)
    phase.models.student.eval()
    criterion = Criterion(TASK, weighting=weighting)
    collate = Collator(bench.train, 0, CPU, phase.teacher_logits)
    criterion.study(collate)
    objective = phase.method.build(Part(), phase.models, criterion)
    objective.student.eval()
    found = []
    for accumulation in (1, 4):
        objective.student.zero_grad()
        weigh = partial(criterion.weigh, progress=0.1)
        sums = backward(objective, collate, np.arange(8), Cut(accumulation), 1, 10, run, weigh)
        found.append([p.grad.clone() for p in objective.student.parameters() if p.grad is not None] + [sums["loss"]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "training", [{"sample_weighting": "focal"}, {"sample_weighting": "disagreement"}, {"loss": "dist"}]
)
def test_what_needs_the_whole_batch_at_once_refuses_to_cut_it(training: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="gradient_accumulation \\(2\\) has to be 1 with"):
        Training.model_validate({**training, "gradient_accumulation": 2})
    Training.model_validate(training)
    Training.model_validate({"loss": {"type": "dist", "intra": 0}, "gradient_accumulation": 2})


def test_a_curriculum_goes_from_the_easiest_examples_to_all(bench: Bench) -> None:
    """The teacher's loss orders the split; its rank decides, whatever the losses' size is."""
    curriculum = Curriculum(start=0.25, until=0.5)
    teacher = torch.zeros(len(bench.train), 3)
    labels = torch.from_numpy(bench.train.labels)
    # The k-th example has the k-th highest logit at its own label: the first is the hardest.
    teacher[torch.arange(len(labels)), labels] = torch.linspace(0, 5, len(labels))
    collate = Collator(bench.train, 0, CPU, teacher)
    places = ranks(curriculum, TASK, collate, Criterion(TASK).teacher_rows)
    assert places.tolist() == pytest.approx(torch.linspace(1, 0, len(labels)).tolist())
    criterion = Criterion(TASK, weighting=curriculum)
    criterion.study(collate)
    hard, easy = 2, len(labels) - 3
    shares = []
    for progress in (0.0, 0.2, 0.5, 0.9):
        (batch,) = criterion.weigh([collate(np.array([hard, easy]))], progress)
        assert batch.weights is not None
        assert batch.weights.mean().item() == pytest.approx(1, abs=1e-5)
        shares.append(batch.weights[0].item())
    assert shares[0] < 0.001
    assert shares[0] < shares[1] < shares[2]
    assert shares[2:] == pytest.approx([1, 1])


class _Heard(Curriculum):
    """Notes how far it is in each step."""

    _progress: list[float] = PrivateAttr(default_factory=list)

    def weights(self, difficulties: Tensor, progress: float) -> Tensor:
        self._progress.append(progress)
        return super().weights(difficulties, progress)


@pytest.mark.parametrize(
    "method", [KnowledgeDistillation(), Auto(), TinyBERT(), MiniLM(), FastBert(), DynaBERT()], ids=lambda one: one.type
)
def test_a_method_of_several_parts_has_one_curriculum(bench: Bench, tmp_path: Path, method: Method) -> None:
    """Guards methods that learn answers in more than one part, which began at the easiest examples again in each; and
    those that first compare what is inside, whose curriculum is not to be over before there is an answer to weigh."""
    heard = _Heard()
    phase = replace(bench.phase(method), weighting=heard)
    train(phase, bench.run(tmp_path, phase))
    inside = phase.part_steps()[0] if isinstance(method, TinyBERT | MiniLM) else 0
    steps = phase.steps - inside
    assert len(heard._progress) == phase.steps
    assert heard._progress == pytest.approx([0.0] * inside + [step / steps for step in range(steps)])


@pytest.mark.parametrize("method", [Auto(), TinyBERT()], ids=lambda one: one.type)
def test_a_curriculum_goes_on_where_it_was_interrupted(bench: Bench, tmp_path: Path, method: Method) -> None:
    whole, pieces = _Heard(), _Heard()
    phase = replace(bench.phase(method), weighting=whole)
    undisturbed = train(phase, bench.run(tmp_path / "whole", phase)).model.state_dict()
    for _ in range(200):
        phase = replace(bench.phase(method), weighting=pieces)
        run = bench.run(tmp_path / "pieces", phase, Recorder(stop_after=1))
        try:
            resumed = train(phase, run).model.state_dict()
            break
        except Interrupted:
            run.commit()
    else:
        pytest.fail("the run never ended")
    assert pieces._progress == whole._progress
    for name, value in undisturbed.items():
        assert torch.equal(resumed[name], value), name


def test_a_curriculum_of_an_earlier_version_goes_on(bench: Bench, tmp_path: Path) -> None:
    """Guards jobs that are in flight when Limbeck is renewed: their curriculum would begin again."""
    heard = _Heard()
    phase = replace(bench.phase(KnowledgeDistillation()), weighting=heard)
    run = bench.run(tmp_path, phase, Recorder(stop_after=5))
    with pytest.raises(Interrupted):
        train(phase, run)
    done = list(heard._progress)
    assert 2 < len(done) < phase.steps
    tensors, facts = run.store.read_tensors("distilling-training")
    del facts["position"]["weighed"]
    run.store.write_tensors("distilling-training", tensors, facts)
    run.commit()
    phase = replace(bench.phase(KnowledgeDistillation()), weighting=heard)
    train(phase, bench.run(tmp_path, phase))
    assert heard._progress == pytest.approx([step / phase.steps for step in range(phase.steps)])


def test_the_root_pacing_is_the_papers() -> None:
    """c(t) = sqrt(t (1 - c0²) + c0²): at c0 = 0.2 and half way sqrt(0.52)."""
    assert Curriculum(start=0.2, until=1.0).competence(0.5) == pytest.approx(math.sqrt(0.52))
    assert Curriculum(start=0.2, until=1.0, pacing="linear").competence(0.5) == pytest.approx(0.6)
    half = Curriculum(start=0.2, until=0.5, pacing="linear")
    assert [half.competence(one) for one in (0.0, 0.25, 0.5, 0.9)] == pytest.approx([0.2, 0.6, 1, 1])


def test_a_method_without_teacher_logits_is_weighted_by_them_all_the_same(bench: Bench, tmp_path: Path) -> None:
    """Guards methods such as theseus, whose batches carry no logits of their own accord."""
    plain, weighted = bench.phase(FineTuning(), epochs=1), bench.phase(FineTuning(), epochs=1, weighting=Disagreement())
    ends = []
    for name, phase in (("plain", plain), ("weighted", weighted)):
        ends.append(train(phase, bench.run(tmp_path / name, phase)).model.state_dict())
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_weighting_changes_no_draw_of_an_unweighted_run(bench: Bench, tmp_path: Path) -> None:
    """Weights that are all equal leave the training as it is, to the rounding: after its end a curriculum is none."""
    curriculum = Curriculum(until=1e-9, start=1.0)
    ends = []
    for name, weighting in (("plain", None), ("weighted", curriculum)):
        phase = replace(bench.phase(KnowledgeDistillation(), epochs=1), weighting=weighting)
        ends.append(train(phase, bench.run(tmp_path / name, phase)).model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_branches_are_not_weighted_by_the_labels_that_they_do_not_learn(bench: Bench, tmp_path: Path) -> None:
    """Guards FastBERT's second part, the divergence from the last head of every text alike: weighed by the label, texts
    that a branch is right about, which are to leave there, would count least, and those that the head is wrong about
    most."""
    asked: list[int] = []

    class Heard(Focal):
        def difficulties(self, task: Any, student: Tensor | None, teacher: Tensor | None, targets: Tensor) -> Tensor:
            asked.append(len(targets))
            return super().difficulties(task, student, teacher, targets)

    phase = replace(bench.phase(FastBert()), weighting=Heard())
    of_model, of_branches = phase.part_steps()
    train(phase, bench.run(tmp_path, phase))
    assert of_branches > 1
    assert len(asked) == 2 * of_model  # the soft and the hard loss of each step
