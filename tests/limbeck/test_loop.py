"""The training loop: gradients, schedule, exact resume, and what stops it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.batches import Batch, Collator
from limbeck.checkpoint import CheckpointStore
from limbeck.criterion import Criterion
from limbeck.errors import Conflict, Diverged, Interrupted
from limbeck.gradients import Cut, backward
from limbeck.loop import train
from limbeck.methods.auto import Auto
from limbeck.methods.base import Models, Objective, Part, Term
from limbeck.methods.distilbert import DistilBERT
from limbeck.methods.dynabert import DynaBERT
from limbeck.methods.fastbert import FastBert
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import MiniLM
from limbeck.methods.noise import NoisyLabels
from limbeck.methods.none import FineTuning
from limbeck.methods.patient import Patient
from limbeck.methods.self_distillation import SelfDistillation
from limbeck.methods.theseus import Theseus
from limbeck.methods.tinybert import TinyBERT
from limbeck.optimizing import adamw, schedule, update
from limbeck.phase import Position
from limbeck.run import JOURNAL, Run
from limbeck.vocabulary import Vocabulary
from tests.limbeck.bench import TASK, Bench, Recorder, assert_equal

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def weights(bench: Bench, workdir: Path, method: Any, **changes: Any) -> dict[str, torch.Tensor]:
    phase = bench.phase(method, **changes)
    return dict(train(phase, bench.run(workdir, phase)).model.state_dict())


@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_accumulated_gradients_equal_those_of_the_whole_batch(bench: Bench, tmp_path: Path, unit: str) -> None:
    """8 × 1 against 2 × 4, with parts of unequal size and texts of unequal length: guards against a mean of means,
    which weighs short parts too high. ``tokens`` is a loss averaged over real tokens, as masked hidden states are."""
    phase = bench.phase(KnowledgeDistillation())
    run = bench.run(tmp_path, phase)
    student = phase.models.student.eval()

    class Weighed(Objective):
        module = student

        def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
            logits = student(**batch.inputs).logits.logsumexp(dim=1)
            units = batch.inputs["attention_mask"].sum(dim=1) if unit == "tokens" else torch.ones(len(logits))
            return {"loss_of_units": Term((logits * units).sum() / units.sum(), unit=unit)}

    Weighed.student = student
    rows = np.array([0, 11, 22, 33, 44, 5, 16, 27, 38, 9])
    found = []
    for accumulation in (1, 4):
        student.zero_grad()
        sums = backward(Weighed(), Collator(bench.train, 0, CPU), rows, Cut(accumulation), 0, 1, run)
        found.append([p.grad.clone() for p in student.parameters() if p.grad is not None] + [sums["loss"]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms(bench: Bench, tmp_path: Path) -> None:
    phase = bench.phase(KnowledgeDistillation(alpha=0.25))
    phase.models.student.eval()
    objective = phase.method.build(Part(), phase.models, Criterion(TASK))
    collate = Collator(bench.train, 0, CPU, phase.teacher_logits)
    values = backward(objective, collate, np.arange(8), Cut(), 0, 1, bench.run(tmp_path, phase))
    assert values["loss"].item() == pytest.approx(0.25 * values["soft_loss"].item() + 0.75 * values["hard_loss"].item())


def test_the_schedule_rises_over_the_warm_up_and_falls_to_zero() -> None:
    factors = [schedule(step, 10, 0.2) for step in range(11)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])


def test_a_step_goes_along_the_gradient_at_the_rate_and_no_longer_than_1() -> None:
    """Guards the clipping, without which a few steps still learn something: a gradient of length 5 counts as one of 1,
    a shorter one as it is, and what is reported is the length that it had. In units of 2 a weight's gradient is twice
    as long, and so is its step."""
    for gradient, spread, expected in (
        ([3.0, 4.0], 1.0, [-0.06, -0.08]),
        ([0.3, 0.4], 1.0, [-0.03, -0.04]),
        ([1.5, 2.0], 2.0, [-0.12, -0.16]),
    ):
        layer = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(layer.weight)
        layer.weight.grad = torch.tensor([gradient])
        objective: Any = SimpleNamespace(module=layer)
        groups = [{"params": [layer.weight], "spread": spread}]
        norm = update(objective, torch.optim.SGD(groups, lr=99.0), 0.1)
        assert norm.item() == pytest.approx(math.hypot(*gradient) * spread)
        assert layer.weight.tolist() == [pytest.approx(expected, rel=1e-4)]
        assert layer.weight.grad is None, "or the next step goes along it once more"


def test_matrices_decay_and_biases_norms_and_the_word_table_do_not(bench: Bench) -> None:
    phase = bench.phase(FineTuning(), weight_decay=0.3)
    student = phase.models.student
    objective = phase.method.build(Part(), phase.models, Criterion(TASK))
    decaying, free = adamw(objective, phase, Position()).param_groups
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    shrinking, staying = ({names[id(one)] for one in group["params"]} for group in (decaying, free))
    assert shrinking | staying == set(names.values())
    assert staying == {n for n in names.values() if n.endswith("bias") or "LayerNorm" in n or "word_embeddings" in n}


class _Twice(FineTuning):
    def parts(self) -> tuple[Part, ...]:
        return (Part(learning_rate=2.0),)


def test_a_parts_learning_rate_is_a_factor_on_the_configured_one(bench: Bench, tmp_path: Path) -> None:
    """Guards fastbert's branches and tinybert's first part, whose rates are their own: any rate trains something."""
    once = weights(bench, tmp_path / "once", FineTuning(), learning_rate=1e-3, epochs=1)
    assert_equal(weights(bench, tmp_path / "twice", _Twice(), learning_rate=5e-4, epochs=1), once)


_RESUMED = [
    FineTuning(),
    KnowledgeDistillation(),
    Patient(),
    TinyBERT(),
    MiniLM(),
    Auto(),
    DistilBERT(),
    FastBert(),
    DynaBERT(),
    SelfDistillation(),
    NoisyLabels(),
    *(Theseus(replacing=variant) for variant in ("linear", "constant", "additive")),
]


@pytest.mark.parametrize("method", _RESUMED, ids=lambda method: f"{method.type} {getattr(method, 'replacing', '')}")
def test_a_run_interrupted_after_every_step_ends_with_equal_weights(bench: Bench, tmp_path: Path, method: Any) -> None:
    """Guards everything that a checkpoint may forget: dropout's generator, moments of AdamW, place in the epoch, the
    best weights so far, a validation that was under way; which layers were replaced, which noise an example has. Each
    attempt starts from the files alone."""
    undisturbed = weights(bench, tmp_path / "whole", method)
    for _ in range(200):
        phase = bench.phase(method)
        run = bench.run(tmp_path / "pieces", phase, Recorder(stop_after=1))
        torch.rand(7)
        try:
            resumed = train(phase, run)
            break
        except Interrupted:
            run.commit()
    else:
        pytest.fail("the run never ended")
    assert run.meter.step == phase.steps
    assert_equal(resumed.model.state_dict(), undisturbed)


def test_a_checkpoint_between_two_steps_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    """Guards against a checkpoint that draws, or that shares memory with what goes on changing."""
    method = KnowledgeDistillation()
    undisturbed = weights(bench, tmp_path / "whole", method)
    phase, recorder = bench.phase(method), Recorder()
    fitted = train(phase, bench.run(tmp_path / "often", phase, recorder, every=0))
    assert recorder.checkpoints == phase.steps
    assert_equal(fitted.model.state_dict(), undisturbed)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(bench: Bench, tmp_path: Path) -> None:
    first, again, other = (weights(bench, tmp_path / str(i), FineTuning(), seed=s) for i, s in enumerate((3, 3, 4)))
    assert_equal(again, first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_the_best_epoch_is_kept_and_not_the_last(bench: Bench, tmp_path: Path) -> None:
    """Guards the choice on validation: the weights that come back score what was reported for them."""
    from limbeck.cache import predict
    from limbeck.evaluate import score

    phase = bench.phase(FineTuning(), epochs=4, learning_rate=8e-3)
    run = bench.run(tmp_path, phase)
    fitted = train(phase, run)
    history = [point["accuracy"] for point in fitted.history]
    assert fitted.score == max(history)
    assert fitted.epoch == 1 + history.index(max(history))
    answers = predict(fitted.model, bench.validation, TASK, run).argmax(axis=1)
    assert score("accuracy", answers, bench.validation.labels) == fitted.score


def test_unused_rows_of_the_vocabulary_stay_as_they_were(bench: Bench, tmp_path: Path) -> None:
    """Guards the compact vocabulary: with the whole table a step leaves unused rows alone, weight decay included."""
    phase = bench.phase(FineTuning(), weight_decay=0.5, epochs=1)
    extra = torch.full((1, 32), 0.5)
    table = phase.models.student.get_input_embeddings()
    table.weight = nn.Parameter(torch.cat([table.weight.detach(), extra]))
    train(phase, bench.run(tmp_path, phase))
    assert torch.equal(table.weight[-1:].detach(), extra)


def test_the_compact_vocabulary_trains_the_same_weights_as_the_whole_one(bench: Bench, tmp_path: Path) -> None:
    """Guards "changes nothing but time": every weight, the used rows of the table, and the unused ones, which no step
    may move, by weight decay either."""
    compact = bench.blueprint.vocabulary
    whole = replace(
        bench,
        blueprint=replace(bench.blueprint, vocabulary=Vocabulary.whole(compact.full_size)),
        train=compact.restore(bench.train),
        validation=compact.restore(bench.validation),
    )
    assert len(compact) < compact.full_size
    table = "bert.embeddings.word_embeddings.weight"
    start = whole.student().state_dict()[table].clone()
    few, all_of_them = (
        weights(one, tmp_path / name, FineTuning(), weight_decay=0.5) for one, name in ((bench, "few"), (whole, "all"))
    )
    assert not torch.equal(few[table], bench.student().state_dict()[table])
    unused = np.setdiff1d(np.arange(compact.full_size), compact.kept)
    assert torch.equal(all_of_them[table][unused], start[unused])
    found = {**few, table: compact.grow(few[table], start)}
    assert found.keys() == all_of_them.keys()
    for name, value in all_of_them.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


class _Exploding(FineTuning):
    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        objective = super().build(part, models, criterion)
        inner = objective.losses

        def losses(batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
            terms = inner(batch, step, steps)
            return {
                name: replace(term, value=term.value * (math.inf if step == 3 else 1)) for name, term in terms.items()
            }

        objective.losses = losses  # type: ignore[method-assign]
        return objective


def test_a_loss_that_is_not_finite_names_its_step_and_spoils_no_checkpoint(bench: Bench, tmp_path: Path) -> None:
    """Guards against a checkpoint of NaN weights, from which a job would be resumed for ever."""
    phase = bench.phase(_Exploding())
    with pytest.raises(Diverged, match="At step 4 of distilling the loss became inf"):
        train(phase, bench.run(tmp_path, phase, every=0))
    tensors, facts = bench.run(tmp_path, phase).store.read_tensors("distilling-training")
    assert facts["position"]["step"] == 3
    assert all(bool(torch.isfinite(value.float()).all()) for value in tensors.values())


@pytest.mark.parametrize(
    ("method", "places", "kept"),
    [
        (FineTuning(), ["epoch 1 of 2", "epoch 2 of 2"], "epoch 1 kept"),
        (
            MiniLM(share=0.25),
            [
                "part 1 of 2 (relations), within epoch 1 of 2",
                "part 2 of 2 (answers), epoch 1 of 2",
                "part 2 of 2 (answers), epoch 2 of 2",
            ],
            "epoch 1 of part 'answers' kept",
        ),
        (
            FastBert(),
            [
                "part 1 of 2 (model), epoch 1 of 2",
                "part 1 of 2 (model), within epoch 2 of 2",
                "part 2 of 2 (branches), epoch 2 of 2",
            ],
            "as its last step left it",
        ),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_events_say_which_part_an_epoch_is_of_and_what_is_kept_of_it(
    bench: Bench, tmp_path: Path, method: Any, places: list[str], kept: str
) -> None:
    """Guards against "epoch 2 of 3" said twice, and "epoch 2 kept" of a part whose validation chooses nothing."""
    phase, said = bench.phase(method), Recorder()
    fitted = train(phase, bench.run(tmp_path, phase, said))
    told = [message for kind, message, _ in said.events if kind == "epoch.finished"]
    assert [message.split(":")[0].removeprefix("Student, ") for message in told] == places
    silent = {f"({part.name})" for part in method.parts() if not part.selects}
    for message in told:
        assert ("chooses nothing here" in message) == any(name in message for name in silent)
    assert re.sub("epoch [12]", "epoch 1", fitted.kept) == kept


def test_a_training_that_is_cut_off_in_its_last_epoch_is_validated_there_and_resumes_exactly(
    bench: Bench, tmp_path: Path
) -> None:
    """Guards the baseline beside texts without labels, whose steps are no whole number of its epochs: what it learned
    behind its last whole epoch would else be lost, at a rate that never came down."""
    whole = bench.phase(FineTuning())
    cut = whole.steps_per_epoch + 2
    phase = bench.phase(FineTuning(), cut=cut)
    assert (phase.steps, phase.part_steps()) == (cut, [cut])
    said = Recorder()
    undisturbed = train(phase, bench.run(tmp_path / "whole", phase, said))
    assert [point["step"] for point in undisturbed.history] == [whole.steps_per_epoch, cut]
    ended = [message.split(":")[0] for kind, message, _ in said.events if kind == "epoch.finished"]
    assert ended == ["Student, epoch 1 of 2", "Student, epoch 2 of 2"]
    for stop in (2, whole.steps_per_epoch + 1, None):
        phase = bench.phase(FineTuning(), cut=cut)
        run = bench.run(tmp_path / "pieces", phase, Recorder(stop_after=stop))
        try:
            resumed = train(phase, run)
        except Interrupted:
            run.commit()
    assert run.meter.step == cut
    assert_equal(resumed.model.state_dict(), undisturbed.model.state_dict())
    with pytest.raises(ValueError, match="is not in epoch 2"):
        bench.phase(FineTuning(), cut=2 * whole.steps_per_epoch + 1)


def test_a_journal_of_an_earlier_version_is_gone_on_from(bench: Bench, tmp_path: Path) -> None:
    """Guards jobs that are in flight when a field is added: their state would be another run's for good."""
    bench.run(tmp_path, bench.phase()).commit()
    store = CheckpointStore(tmp_path / "state")
    journal = store.read_json(JOURNAL)
    training = journal["facts"]["config"]["training"]

    def reopen() -> Run:
        store.write_json(JOURNAL, journal)
        store.commit(0)
        return bench.run(tmp_path, bench.phase())

    whole = dict(training)
    del training["weight_decay"]
    assert reopen().facts["config"]["training"] == whole
    for other in ({"weight_decay": 0.5}, {"unknown": 1}):
        journal["facts"]["config"]["training"] = whole | other
        with pytest.raises(Conflict, match="another configuration"):
            reopen()
