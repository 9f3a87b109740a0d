"""The one training loop: a teacher that is fine-tuned, a student that is distilled and a baseline all pass it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import evaluate
from limbeck.batch_probe import accumulation_of
from limbeck.batches import Collator
from limbeck.cache import predict
from limbeck.criterion import Criterion
from limbeck.device import random_state, restore_random_state, seed_everything
from limbeck.errors import Diverged, Interrupted
from limbeck.families import pad_id_of
from limbeck.gradients import Cut, backward, trainable
from limbeck.methods.base import Models, Objective, Part
from limbeck.phase import Phase, Position
from limbeck.recurrent import MODEL_TYPE as RECURRENT
from limbeck.resuming import load, restore, stage
from limbeck.run import Run
from limbeck.size_card import shape_of
from limbeck.students import has_words

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from limbeck.weighting import SampleWeighting

#: Gradients longer than this are scaled down to it (BERT's own setting).
_GRADIENT_NORM = 1.0
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
    objective: Objective | None = None
    answers = _soft_labels(phase)
    models = replace(phase.models, states_kept=phase.teacher_states is not None)
    for index, (part, steps) in enumerate(zip(phase.method.parts(), phase.part_steps(), strict=True)):
        if index < position.part:
            continue
        if index > position.part:
            position.part, position.step, position.validated, position.best_score = index, 0, 0, -2.0
            position.variants = {}
        criterion = _criterion(phase, part, run)
        objective = _build(phase, index, part, models, criterion)
        objective.module.to(run.device.torch)
        optimizer = _adamw(objective, phase, position)
        if saved is not None:
            load(saved, objective, optimizer)
            saved = None
        run.ranks.share(objective.module)  # what was drawn for it is rank 0's
        losses: list[tuple[int, dict[str, Tensor]]] = []
        batches: list[NDArray[np.int64]] = []
        asked = part.teacher_logits or criterion.needs_teacher_logits
        collate = _collator(objective, answers if asked else None, phase, run)
        criterion.study(collate)
        try:
            accumulation = accumulation_of(phase, part.name, objective, optimizer, collate, steps, run)
            while True:
                epoch, place = divmod(phase.steps_done(position), phase.steps_per_epoch)
                ended = position.step == steps
                if position.validated < position.step and (place == 0 or ended):
                    _check(losses, position, phase, run)
                    best = _end_epoch(objective, part, best, phase, position, run)
                if ended:
                    _validate_variants(objective, phase, position, run)
                    break
                run.poll()
                if run.save_due():
                    _check(losses, position, phase, run)
                    stage(objective, optimizer, position, phase, run)
                    run.commit()
                if place == 0 or not batches:
                    batches = phase.train.batches(phase.batch_size, seed=phase.seed, epoch=epoch)
                    collate = replace(collate, data=phase.task.in_epoch(phase.train, phase.seed, epoch))

                rate = phase.learning_rate * part.learning_rate * schedule(position.step, steps, phase.warmup_ratio)
                rows = batches[place]
                objective.train_mode()
                run.ranks.seed_step(phase.seed, index, position.step)
                cut = Cut(accumulation, phase.token_budget)
                weigh = partial(criterion.weigh, progress=position.weighing(phase))
                values = backward(objective, collate, rows, cut, position.step, steps, run, weigh)
                values["gradient_norm"] = _update(objective, optimizer, rate)
                position.step += 1
                position.weighed += criterion.weighed
                losses.append((position.step, values))

                _advance(phase, rows, run)
                if run.device.torch.type == "cpu" or len(losses) >= _GPU_CHECK:
                    _check(losses, position, phase, run)
        except Interrupted:
            _check(losses, position, phase, run)
            stage(objective, optimizer, position, phase, run)
            raise
        if best is not None:
            objective.student.load_state_dict(best)
    assert objective is not None
    model = phase.method.finish(objective)
    run.meter.finish(phase.name)
    return Fitted(model, position.best_score, position.best_epoch, phase.kept(part, position), position.history)


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
    teacher, unit = phase.panel or phase.models.teacher, phase.task.loss_unit(phase.train)
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


def _end_epoch(
    objective: Objective, part: Part, best: dict[str, Tensor] | None, phase: Phase, position: Position, run: Run
) -> dict[str, Tensor] | None:
    """Validate; the best weights from now on."""
    score = _validate(objective, part, phase, position, run)
    if not part.selects or score > position.best_score:
        best = _keep_best(objective, score, phase, position, run)
    position.validated = position.step
    return best


def _soft_labels(phase: Phase) -> Tensor | None:
    """The teachers' answers as the method has them learned, side by side as they came."""
    answers = phase.teacher_logits
    if answers is None:
        return None
    # Each teacher's on its own: what is drawn for an example is then the same for all of them.
    each = answers.chunk(phase.ensemble.members, dim=-1) if phase.ensemble else (answers,)
    learned = [phase.method.soft_labels(one, phase.seed) for one in each]
    return learned[0] if len(learned) == 1 else torch.cat(learned, dim=-1)


def _update(objective: Objective, optimizer: torch.optim.Optimizer, rate: float) -> Tensor:
    """One optimizer step along the gradient that has been added up; its norm before it was clipped."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["spread"]
        if group["spread"] != 1:
            for parameter in group["params"]:
                if parameter.grad is not None:  # of a part that matches what is inside there is none
                    parameter.grad.mul_(group["spread"])
    norm = nn.utils.clip_grad_norm_(trainable(objective.module), _GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """The learning rate's factor: from 0 up to 1 over the warm-up, then in a line down to 0 at ``steps``."""
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / (steps - warmup)


def _adamw(objective: Objective, phase: Phase, position: Position) -> torch.optim.AdamW:
    """Biases and norms do not decay, as usual, and the embedding table does not either: rows that the data never uses
    would shrink, and could then not be left out of the step (``limbeck/vocabulary.py``).

    AdamW's steps are as long whatever a gradient's length, so that a head which answers with numbers would stand still
    beside prices and be all noise beside shares. It steps as one that answers in units of the labels' spread does:
    gradient and learning rate times the spread, decay divided by it.
    """
    learned, student = trainable(objective.module), objective.student
    table = student.get_input_embeddings().weight if has_words(student) else None
    spread = math.sqrt(phase.task.loss_unit(phase.train)) if position.scaled else 1.0
    head = _head(objective, phase) if spread != 1 else []
    of_head = {id(p) for p in head}
    rest = [p for p in learned if id(p) not in of_head]
    groups = []
    for parameters, unit in ((rest, 1.0), (head, spread)):
        free = [p for p in parameters if p.dim() < 2 or p is table]
        decaying = [p for p in parameters if p.dim() >= 2 and p is not table]
        groups += [
            {"params": decaying, "weight_decay": phase.weight_decay / unit, "spread": unit},
            {"params": free, "weight_decay": 0.0, "spread": unit},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def _head(objective: Objective, phase: Phase) -> list[nn.Parameter]:
    """Of what learns, weight and bias of the last linear layer, wherever the student is inside of the module."""
    kind = objective.student.config.model_type
    layer = "classifier" if kind == RECURRENT else phase.task.output_layer(kind)
    ends = tuple(f".{layer}.{name}" for name in ("weight", "bias"))
    named = objective.module.named_parameters()
    return [p for name, p in named if p.requires_grad and f".{name}".endswith(ends)]


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


def _check(losses: list[tuple[int, dict[str, Tensor]]], position: Position, phase: Phase, run: Run) -> None:
    """Bring the losses since the last look to the CPU; refuse NaN; report a metrics point now and then."""
    if not run.ranks.leads:  # it has the same losses, and rank 0 says what is wrong
        losses.clear()
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
            means = {f"{phase.name}/{name}": total / position.window_steps for name, total in position.window.items()}
            run.metrics(means, steps_ago=position.step - step)
            position.window, position.window_steps = {}, 0
    losses.clear()


def _advance(phase: Phase, rows: NDArray[np.int64], run: Run) -> None:
    share = float(phase.train.lengths_of(rows).sum() / phase.train.starts[-1]) * phase.steps_per_epoch / phase.steps
    run.meter.advance(share, examples=len(rows), steps=1)
