"""Module replacing: the schedule, the draw, what is replaced by what, and what stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from limbeck import preflight
from limbeck.batches import Batch, Collator
from limbeck.config import DistillConfig, Student, Teacher
from limbeck.criterion import Criterion
from limbeck.errors import InvalidConfig
from limbeck.families import FAMILIES, family_of
from limbeck.gradients import Cut, backward
from limbeck.loop import train
from limbeck.methods.base import Models, Part
from limbeck.methods.none import FineTuning
from limbeck.methods.theseus import Replacing, Theseus
from limbeck.model_folder import model_facts
from limbeck.replacing import Hybrid, draw
from limbeck.sources import teacher_folder
from limbeck.students import student_layers
from tests.limbeck.bench import LABELS, TASK, Bench, Recorder

CPU = torch.device("cpu")
INPUTS = {
    "input_ids": torch.tensor([[2, 40, 41, 3], [2, 42, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}
STEPS = 100


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def objective(bench: Bench, method: Theseus) -> Replacing:
    built = method.build(Part(), Models(bench.student(), bench.teacher, seed=3), Criterion(TASK))
    assert isinstance(built, Replacing)
    return built


def batch_of(bench: Bench, rows: Any = range(8)) -> Batch:
    return Collator(bench.train, 0, CPU)(np.asarray(rows))


def tiny(model_type: str, layers: int) -> PreTrainedModel:
    """A random model of the family, in ``eval()``, whose layers make a difference to the answer."""
    size = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    if model_type == "distilbert":
        size = {"dim": 16, "n_layers": layers, "n_heads": 2, "hidden_dim": 32}
    config = AutoConfig.for_model(model_type, vocab_size=60, pad_token_id=0, initializer_range=0.3, **size)
    TASK.configure(config, LABELS)
    torch.manual_seed(layers)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
    return model


def layers_of(model: PreTrainedModel) -> Iterator[Any]:
    found: Any = model.base_model.get_submodule(family_of(model.config.model_type).layers)
    return iter(found)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # MRPC as the paper has it: 15 epochs of 115 steps; 0.3 + 0.0006 · step.
        ({"base": 0.3, "rate": 6e-4}, {0: 0.3, 500: 0.6, 1166: 0.9996, 1167: 1.0, 1724: 1.0}),
        # The same by its share of the run: 0.68 · 1725 = 1173 steps, 0.3 + 0.7 · 391 / 1173 = 0.5333…
        ({}, {0: 0.3, 391: 0.3 + 0.7 / 3, 1173: 1.0, 1724: 1.0}),
        ({"base": 0.5, "full": 0.8}, {0: 0.5, 690: 0.75, 1380: 1.0}),
        ({"replacing": "constant", "base": 0.5, "full": 0.6}, {0: 0.5, 1034: 0.5, 1035: 1.0}),
        ({"replacing": "additive"}, {0: 0.3, 391: 0.3 + 0.7 / 3, 1173: 1.0}),
    ],
)
def test_the_share_of_the_successors_follows_its_schedule(options: dict[str, Any], expected: dict[int, float]) -> None:
    method = Theseus(**options)
    assert [method.share(step, 1725) for step in expected] == pytest.approx(list(expected.values()))


def test_the_share_never_falls_and_always_ends_at_1() -> None:
    """Guards ``additive``, in which the two weights are easily confused."""
    for variant in ("linear", "constant", "additive"):
        for steps in (10, 1000):
            shares = [Theseus(replacing=variant).share(step, steps) for step in range(steps)]
            assert shares == sorted(shares)
            assert shares[-1] == 1


def test_a_draw_is_a_function_of_seed_and_step_and_leaves_torch_alone() -> None:
    """Guards the draw shared by ranks and micro-batches, and a resumed run, which would else replace other layers."""
    before = torch.get_rng_state()
    draws = [draw(0.3, 4, seed=3, step=step) for step in range(2000)]
    assert torch.equal(torch.get_rng_state(), before)
    assert draws == [draw(0.3, 4, seed=3, step=step) for step in range(2000)]
    assert draws != [draw(0.3, 4, seed=4, step=step) for step in range(2000)]
    rates = np.mean(draws, axis=0)
    np.testing.assert_allclose(rates, 0.3, atol=0.04)  # 4 standard deviations
    together = np.corrcoef(np.array(draws, dtype=float).T)
    np.testing.assert_allclose(together - np.eye(4), 0, atol=0.09)  # each group for itself
    assert draw(1.0, 3, seed=0, step=0) == [True] * 3
    assert draw(0.0, 3, seed=0, step=0) == [False] * 3


@pytest.mark.parametrize(
    "model_type", [name for name, one in FAMILIES.items() if one.reads == "text" and not one.shared]
)
def test_with_none_replaced_it_is_the_predecessor_and_with_all_the_student(model_type: str) -> None:
    """Guards every family's list of layers: one that is not what the model runs through would replace nothing."""
    predecessor, student = tiny(model_type, 4), tiny(model_type, 2)
    inherited = predecessor.state_dict()
    for name, value in student.state_dict().items():
        if family_of(model_type).layers not in name:
            value.copy_(inherited[name])
    teachers, students = predecessor(**INPUTS).logits, student(**INPUTS).logits
    assert not torch.allclose(teachers, students, atol=1e-3)
    hybrid = Hybrid(student, predecessor)
    hybrid.train(False)
    assert torch.equal(hybrid.drawn(0.0, seed=0, step=0)(**INPUTS).logits, teachers)
    assert torch.equal(hybrid.drawn(1.0, seed=0, step=0)(**INPUTS).logits, students)
    seen = {tuple(hybrid.drawn(0.5, seed=0, step=s)(**INPUTS).logits.flatten().tolist()) for s in range(40)}
    assert len(seen) == 4  # two groups, each replaced or not, for the whole batch


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_additive_halfway_is_the_mean_of_the_hidden_states(model_type: str) -> None:
    """By hand, group by group: the mean enters the next group on both of its ways."""
    predecessor, student = tiny(model_type, 4), tiny(model_type, 2)
    blended = {}
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    states = predecessor.base_model.embeddings(INPUTS["input_ids"])
    olds, news = list(layers_of(predecessor)), list(layers_of(student))
    for place, share in ((0, 0.5), (1, 0.5)):
        old = olds[2 * place + 1](olds[2 * place](states, mask), mask)
        states = share * news[place](states, mask) + (1 - share) * old
    hybrid = Hybrid(student, predecessor)
    hybrid.train(False)
    inputs = dict(INPUTS, attention_mask=torch.ones(2, 4, dtype=torch.int64))
    for share in (0.0, 0.5, 1.0):
        blended[share] = hybrid.blended(share).base_model(**inputs)[0]
    torch.testing.assert_close(blended[0.5], states)
    torch.testing.assert_close(blended[0.0], hybrid.drawn(0.0, seed=0, step=0).base_model(**inputs)[0])
    torch.testing.assert_close(blended[1.0], hybrid.drawn(1.0, seed=0, step=0).base_model(**inputs)[0])


@pytest.mark.parametrize("replacing", ["linear", "constant", "additive"])
def test_once_all_are_replaced_it_is_fine_tuning_without_the_teacher(bench: Bench, replacing: Any) -> None:
    """Guards the last third of the run, which would else cost the teacher's time, and train what is not kept."""
    passes: list[int] = []
    predecessor = bench.teacher()
    for layer in layers_of(predecessor):
        layer.register_forward_hook(lambda *_: passes.append(1))
    models = Models(bench.student(), lambda: predecessor)
    built = Theseus(replacing=replacing, base=0.01).build(Part(), models, Criterion(TASK))
    built.losses(batch_of(bench), 0, STEPS)
    assert passes
    passes.clear()
    built.student.eval()
    found = built.losses(batch_of(bench), 68, STEPS)["hard_loss"].value
    plain = FineTuning().build(Part(), models, Criterion(TASK)).losses(batch_of(bench), 68, STEPS)["hard_loss"].value
    assert not passes
    # Not to the bit: on some processors MKL's roundings hang on where in memory the operands lie.
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("replacing", ["linear", "constant", "additive"])
def test_only_the_successors_learn(bench: Bench, tmp_path: Path, replacing: Any) -> None:
    """Guards the predecessor above all: were it to learn, the successors would follow a target that moves."""
    predecessor = bench.teacher()
    original = {name: value.clone() for name, value in predecessor.state_dict().items()}
    # Replacing changes the model's list of layers, so that they are taken hold of before.
    frozen = list(predecessor.parameters())
    values = [value.detach().clone() for value in frozen]
    phase = bench.phase(
        Theseus(replacing=replacing, base=0.9), models=Models(bench.student(), lambda: predecessor, (1, 3), 3)
    )
    before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
    after = train(phase, bench.run(tmp_path, phase)).model.state_dict()
    assert all(torch.equal(now, then) for now, then in zip(frozen, values, strict=True))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert after.keys() == before.keys()
    for name, value in after.items():
        if ".encoder.layer." in name:
            # Keys' biases have no gradient in softmax but rounding; everything else has to move.
            assert not torch.equal(value, before[name]) or name.endswith("key.bias"), name
        else:
            assert torch.equal(value, original[name]), name


def test_the_checkpoint_and_the_optimizer_hold_the_student_alone(bench: Bench, tmp_path: Path) -> None:
    phase = bench.phase(Theseus(base=0.9), epochs=1)
    run = bench.run(tmp_path, phase, Recorder(), every=0)
    train(phase, run)
    tensors, _ = run.store.read_tensors("distilling-training")
    student = phase.models.student
    assert {name for name in tensors if name.startswith("model.")} == {f"model.{name}" for name in student.state_dict()}
    learning = [parameter for layer in layers_of(student) for parameter in layer.parameters()]
    moments = [name for name in tensors if name.endswith(".exp_avg")]
    assert len(moments) == len(learning)
    assert [parameter for parameter in student.parameters() if parameter.requires_grad] == learning


@pytest.mark.parametrize("replacing", ["linear", "additive"])
def test_the_parts_of_a_batch_share_the_draw(bench: Bench, tmp_path: Path, replacing: Any) -> None:
    """8 x 1 against 2 x 4: with a draw for each part the gradient would be that of several networks."""
    phase = bench.phase(Theseus(replacing=replacing))
    run = bench.run(tmp_path, phase)
    for step in range(4):
        found = []
        for accumulation in (1, 4):
            built = objective(bench, Theseus(replacing=replacing, base=0.5))
            built.student.eval()
            built.hybrid.train(False)
            backward(built, Collator(bench.train, 0, CPU), np.arange(8), Cut(accumulation), step, STEPS, run)
            found.append([p.grad for p in built.student.parameters()])
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_step_that_replaces_nothing_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    """Guards the first steps of a student of few layers, at most of which it takes no part in its own training."""
    built = objective(bench, Theseus(replacing="constant", base=1e-9))
    run = bench.run(tmp_path, bench.phase())
    values = backward(built, Collator(bench.train, 0, CPU), np.arange(8), Cut(), 0, STEPS, run)
    assert torch.isfinite(values["loss"])
    assert all(parameter.grad is None for parameter in built.student.parameters())


def test_predecessor_and_successors_train_in_one_mode(bench: Bench) -> None:
    """Also after a validation, which leaves the student, and with it some of the network's layers, in ``eval()``."""
    built = objective(bench, Theseus())
    built.student.eval()
    built.train_mode()
    network = built.hybrid.drawn(0.5, seed=0, step=0)
    assert all(module.training for module in network.modules())
    assert all(module.training for module in built.student.modules())
    assert all(module.training for module in built.hybrid.drawn(0.0, seed=0, step=0).modules())


def test_successor_i_starts_from_layer_i_unless_the_user_says_otherwise() -> None:
    def start(student: Student) -> tuple[int, ...]:
        return student_layers(Theseus().student(student, 6), 6)

    assert start(Student(layers=3)) == (0, 1, 2)
    assert start(Student()) == (0, 1, 2)
    assert start(Student(layers=3, init="uniform")) == (1, 3, 5)
    assert start(Student(layers=(0, 3, 5))) == (0, 3, 5)
    assert student_layers(FineTuning().student(Student(layers=3), 6), 6) == (0, 2, 4)


def test_a_student_whose_layers_do_not_divide_the_teachers_is_refused(bench: Bench) -> None:
    document = {"teacher": "builtin:minilm-l6", "dataset": "someone/data", "method": "theseus", "student": 4}
    facts = model_facts(teacher_folder(Teacher(source="builtin:minilm-l6")).path)
    (problem,) = preflight.check(DistillConfig.parse(document), teacher=facts, labels=["a", "b"])
    assert problem.pointer == "/student/layers"
    assert problem.detail.startswith("found 4; ")
    assert problem.detail.endswith("allowed: 1, 2, 3")
    with pytest.raises(InvalidConfig, match="/student/layers: found 3, which does not divide the teacher's 4"):
        Hybrid(tiny("bert", 3), tiny("bert", 4))


def test_a_student_of_another_kind_is_refused() -> None:
    """Guards libraries' users, whose student need not come from this teacher."""
    with pytest.raises(InvalidConfig, match="found a DistilBertForSequenceClassification"):
        Hybrid(tiny("distilbert", 2), tiny("bert", 4))
    narrow = AutoConfig.for_model("bert", vocab_size=60, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(InvalidConfig, match=r"/student/hidden_size: found 8; .* 16 wide"):
        Hybrid(AutoModelForSequenceClassification.from_config(narrow), tiny("bert", 4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replacing": "constant", "rate": 0.01}, "with replacing = constant"),
        ({"rate": 0.01, "full": 0.5}, "give one of them"),
        ({"replacing": "sometimes"}, "'linear', 'constant' or 'additive'"),
        ({"base": 0}, "greater than 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    document = {"teacher": "org/t", "dataset": "org/d", "method": {"type": "theseus", **options}}
    with pytest.raises(InvalidConfig, match=said):
        DistillConfig.parse(document)
