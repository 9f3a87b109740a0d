"""The one training loop: a teacher that is fine-tuned, a student that is distilled and a baseline all pass it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from limbeck import evaluate
from limbeck.batch_probe import accumulation_of
from limbeck.batches import Collator
from limbeck.cache import predict
from limbeck.criterion import Criterion
from limbeck.device import random_state, restore_random_state, seed_everything
from limbeck.errors import Diverged, Interrupted
from limbeck.families import pad_id_of
from limbeck.gradients import Cut, backward
from limbeck.methods.base import Models, Objective, Part
from limbeck.optimizing import adamw, schedule, update
from limbeck.phase import Phase, Position
from limbeck.resuming import load, restore, stage
from limbeck.run import Run
from limbeck.size_card import shape_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from limbeck.weighting import SampleWeighting

#: Losses are brought to the CPU and checked every so many steps on a GPU, where each look stops the pipeline.
_GPU_CHECK = 16
_POINTS = 200  # of a metrics series, about


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished training."""

    model: PreTrainedModel  #: with the weights of its last part's best epoch, or of the last step of one without
    score: float  #: main metric on validation
    epoch: int
    kept: str  #: which weights these are, for people
    history: list[dict[str, float]]


def train(phase: Phase, run: Run) -> Fitted:
    """Train, keeping the best validated weights.

    Raises:
        Diverged: the loss or the gradient became NaN or infinite; the step is named.
        Interrupted: the position is staged in the run's state.
    """
    run.meter.begin(phase.name)
    position, saved = restore(phase, run)
    if saved is None:
        seed_everything(phase.seed)
    best = run.store.read_tensors(f"{phase.name}-best")[0] if run.store.has(f"{phase.name}-best") else None
    answers = _soft_labels(phase)
    models = replace(phase.models, states_kept=phase.teacher_states is not None)
    under_way: _Training | None = None
    for index, (part, steps) in enumerate(zip(phase.method.parts(), phase.part_steps(), strict=True)):
        if index < position.part:
            continue
        if index > position.part:
            position.begin(index)
        criterion = _criterion(phase, part, run)
        objective = _build(phase, index, part, models, criterion)
        objective.module.to(run.device.torch)
        optimizer = adamw(objective, phase, position)
        if saved is not None:
            load(saved, objective, optimizer)
            saved = None
        run.ranks.share(objective.module)  # what was drawn for it is rank 0's
        asked = part.teacher_logits or criterion.needs_teacher_logits
        collate = _collator(objective, answers if asked else None, phase, run)
        criterion.study(collate)
        under_way = _Training(phase, run, position, part, steps, objective, optimizer, criterion, collate, best)
        try:
            under_way.train()
        except Interrupted:
            under_way.check()
            stage(objective, optimizer, position, phase, run)
            raise
        best = under_way.best
        if best is not None:
            objective.student.load_state_dict(best)
    assert under_way is not None
    model = phase.method.finish(under_way.objective)
    run.meter.finish(phase.name)
    return Fitted(
        model, position.best_score, position.best_epoch, phase.kept(under_way.part, position), position.history
    )


@dataclass(slots=True)
class _Training:
    """One part of a training, under way."""

    phase: Phase
    run: Run
    position: Position
    part: Part
    steps: int  #: of this part
    objective: Objective
    optimizer: torch.optim.Optimizer
    criterion: Criterion
    collate: Collator
    best: dict[str, Tensor] | None  #: the weights that validated best so far
    losses: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)  #: that nobody has looked at yet

    def train(self) -> None:
        """Take the steps that are left; after each epoch, and after the last step, the student is validated."""
        phase, position, run = self.phase, self.position, self.run
        accumulation = accumulation_of(
            phase, self.part.name, self.objective, self.optimizer, self.collate, self.steps, run
        )
        cut = Cut(accumulation, phase.token_budget)
        batches: list[NDArray[np.int64]] = []
        while True:
            epoch, place = divmod(phase.steps_done(position), phase.steps_per_epoch)
            ended = position.step == self.steps
            if position.validated < position.step and (place == 0 or ended):
                self.check()
                self._end_epoch()
            if ended:
                _validate_variants(self.objective, phase, position, run)
                return
            run.poll()
            if run.save_due():
                self.check()
                stage(self.objective, self.optimizer, position, phase, run)
                run.commit()
            if place == 0 or not batches:
                batches = phase.train.batches(phase.batch_size, seed=phase.seed, epoch=epoch)
                self.collate = replace(self.collate, data=phase.task.in_epoch(phase.train, phase.seed, epoch))
            self._step(batches[place], cut)

    def _step(self, rows: NDArray[np.int64], cut: Cut) -> None:
        phase, position, run = self.phase, self.position, self.run
        factor = schedule(position.step, self.steps, phase.warmup_ratio)
        self.objective.train_mode()
        run.ranks.seed_step(phase.seed, position.part, position.step)
        weigh = partial(self.criterion.weigh, progress=position.weighing(phase))
        values = backward(self.objective, self.collate, rows, cut, position.step, self.steps, run, weigh)
        rate = phase.learning_rate * self.part.learning_rate * factor
        values["gradient_norm"] = update(self.objective, self.optimizer, rate)
        position.step += 1
        position.weighed += self.criterion.weighed
        self.losses.append((position.step, values))
        _advance(phase, rows, run)
        if run.device.torch.type == "cpu" or len(self.losses) >= _GPU_CHECK:
            self.check()

    def _end_epoch(self) -> None:
        """Validate, and note the weights where they are the best so far."""
        score = _validate(self.objective, self.part, self.phase, self.position, self.run)
        if not self.part.selects or score > self.position.best_score:
            self.best = _keep_best(self.objective, score, self.phase, self.position, self.run)
        self.position.validated = self.position.step

    def check(self) -> None:
        """Bring the losses since the last look to the CPU; refuse NaN; report a metrics point now and then."""
        phase, position, run = self.phase, self.position, self.run
        losses, self.losses = self.losses, []
        if not run.ranks.leads:  # it has the same losses, and rank 0 says what is wrong
            return
        every = max(1, phase.steps // _POINTS)
        for step, values in losses:
            numbers = {name: float(value) for name, value in values.items()}
            broken = [name for name, number in numbers.items() if not math.isfinite(number)]
            if broken:
                at = phase.steps_done(position) - position.step + step
                raise Diverged(
                    f"At step {at} of {phase.name} the {broken[0].replace('_', ' ')} became {numbers[broken[0]]}. "
                    f"A lower learning rate than {phase.learning_rate:g} may help."
                )
            for name, number in numbers.items():
                position.window[name] = position.window.get(name, 0.0) + number
            position.window_steps += 1
            if step % every == 0:
                means = {
                    f"{phase.name}/{name}": total / position.window_steps for name, total in position.window.items()
                }
                run.metrics(means, steps_ago=position.step - step)
                position.window, position.window_steps = {}, 0


def _build(phase: Phase, index: int, part: Part, models: Models, criterion: Criterion) -> Objective:
    """What a later part draws for itself hangs on the seed alone: how many draws the steps before it took is another
    matter on several devices, and with batches in parts."""
    if index == 0:
        return phase.method.build(part, models, criterion)
    before = random_state()
    seed_everything(int(np.random.SeedSequence([phase.seed, index]).generate_state(1)[0]))
    try:
        return phase.method.build(part, models, criterion)
    finally:
        restore_random_state(*before)


def _criterion(phase: Phase, part: Part, run: Run) -> Criterion:
    teacher, unit = phase.panel or phase.models.teacher, phase.task.loss_unit(phase.labels)
    return Criterion(phase.task, phase.loss, _weighting(phase, part), phase.ensemble, run.ranks, teacher, unit)


def _weighting(phase: Phase, part: Part) -> SampleWeighting | None:
    """What weighs by the student's own answer holds it against the label or the teacher's. Not where a part learns
    neither: a branch of ``fastbert`` learns the last layer's, and the texts that it is soon right about are those that
    are to leave there, sure of it."""
    learns_either = part.teacher_logits or part.labels_alone or phase.method.labels_alone
    if phase.weighting is None or (phase.weighting.by_student and not learns_either):
        return None
    return phase.weighting


def _collator(objective: Objective, answers: Tensor | None, phase: Phase, run: Run) -> Collator:
    pad_id, states = pad_id_of(objective.student.config), phase.teacher_states
    return Collator(phase.train, pad_id, run.device.torch, answers, phase.labelled, states)


def _soft_labels(phase: Phase) -> Tensor | None:
    """The teachers' answers as the method has them learned, side by side as they came."""
    answers = phase.teacher_logits
    if answers is None:
        return None
    # Each teacher's on its own: what is drawn for an example is then the same for all of them.
    each = answers.chunk(phase.ensemble.members, dim=-1) if phase.ensemble else (answers,)
    learned = [phase.method.soft_labels(one, phase.seed) for one in each]
    return learned[0] if len(learned) == 1 else torch.cat(learned, dim=-1)


def _score(model: PreTrainedModel, phase: Phase, position: Position, run: Run) -> float:
    logits = predict(model, phase.validation, phase.task, run)
    if not np.isfinite(logits).all():
        at = phase.steps_done(position)
        raise Diverged(f"After step {at} of {phase.name} the model's logits hold NaN or infinite values.")
    truth = phase.task.truth(phase.validation)
    return evaluate.score(phase.task.main_metric, phase.task.predictions(logits, phase.validation), truth)


def _validate_variants(objective: Objective, phase: Phase, position: Position, run: Run) -> None:
    """Say what the objective has trained along is worth; what was known before an interruption is not asked again."""
    models = objective.variants()
    for label, model in models.items():
        if label not in position.variants:
            position.variants[label] = _score(model, phase, position, run)
    if models:
        run.facts["variants"] = {
            label: {**shape_of(model), "validation": position.variants[label]} for label, model in models.items()
        }
        name = phase.task.main_metric
        shown = "; ".join(f"{label}: {evaluate.shown(name, score)}" for label, score in position.variants.items())
        scores = dict(position.variants)
        run.event("variants.validated", f"After the last step, on validation: {shown}", phase=phase.name, scores=scores)


def _validate(objective: Objective, part: Part, phase: Phase, position: Position, run: Run) -> float:
    name = phase.task.main_metric
    score = _score(objective.student, phase, position, run)
    position.history.append({"step": phase.steps_done(position), name: score})
    run.metrics({f"{phase.name}/validation_{name}": score})
    chooses = "" if part.selects else ", which chooses nothing here: this part keeps its last step"
    run.event(
        "epoch.finished",
        f"{phase.place(part, position)}: {evaluate.shown(name, score)} on validation{chooses}",
        phase=phase.name,
        epoch=phase.epoch_at(position),
        **{name: score},
    )
    return score


def _keep_best(objective: Objective, score: float, phase: Phase, position: Position, run: Run) -> dict[str, Tensor]:
    """Note these weights as the best so far; they count from the next commit on, together with the position."""
    position.best_score = score
    position.best_epoch = phase.epoch_at(position)
    best = {name: value.detach().cpu().clone() for name, value in objective.student.state_dict().items()}
    run.store.write_tensors(f"{phase.name}-best", best, {"step": position.step, "score": score})
    return best


def _advance(phase: Phase, rows: NDArray[np.int64], run: Run) -> None:
    share = float(phase.train.lengths_of(rows).sum() / phase.train.starts[-1]) * phase.steps_per_epoch / phase.steps
    run.meter.advance(share, examples=len(rows), steps=1)
