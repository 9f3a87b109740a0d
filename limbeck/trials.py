"""The method that trains the student: the job's own, what that one takes in its place for the task, or, where the
job's method asks for it, the winner of a race.

Each is trained for a short while on the same examples, drawn by the seed, and validation decides; the better half is
trained for twice as many steps (successive halving; Jamieson and Talwalkar 2016, arXiv:1502.07943), until one is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from limbeck import evaluate, method_checks, several_teachers, shapes
from limbeck.callbacks import Stage
from limbeck.families import depth_of
from limbeck.loop import train
from limbeck.phases import TRIAL, Teachers, answers_of, first_of, models_of, panel_of, phase_of
from limbeck.preflight import serves
from limbeck.progress import TRAINING, Item, forward_work
from limbeck.students import config_facts_of

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.methods.base import Method
    from limbeck.preparation import Prepared
    from limbeck.run import Run

#: Of the student's training, what one method takes in the first round.
_SHARE = 1 / 8
#: A trial of fewer steps than this says nothing: the first candidate is taken.
_FEWEST_STEPS = 20


@dataclass(frozen=True, slots=True)
class _Length:
    """Of one trial: so many of the training examples, so many times."""

    examples: int
    epochs: int

    @property
    def seen(self) -> int:
        """Examples, each as often as it is seen."""
        return self.examples * self.epochs

    def steps(self, batch_size: int) -> int:
        return self.epochs * math.ceil(self.examples / batch_size)


def planned(run: Run, job: Prepared) -> tuple[dict[str, Item], int]:
    """The trials' items of the plan, and their steps together."""
    lengths: list[_Length] = []
    rounds, share = len(_candidates(run, job)), _SHARE
    while rounds > 1:
        lengths += [_length(run, job, share)] * rounds
        rounds, share = rounds // 2, share * 2
    config, texts = job.student.config(), len(job.train)
    whole = forward_work(config, depth_of(config), job.train.lengths)
    check = forward_work(config, depth_of(config), job.validation.lengths)
    items = {
        _name(number): Item(Stage.DISTILLING, whole * length.seen / texts * TRAINING + check * length.epochs)
        for number, length in enumerate(lengths, start=1)
    }
    return items, sum(length.steps(run.config.training.batch_size) for length in lengths)


def settle(run: Run, job: Prepared, teachers: Teachers) -> Method:
    """The method that trains the student: the best of a race; of equal ones the first."""
    candidates, share = _candidates(run, job), _SHARE
    while len(candidates) > 1:
        scores = [_score(run, job, one, teachers, share) for one in candidates]
        order = sorted(range(len(candidates)), key=lambda place: -scores[place])  # stable
        labels, metric = [_label(one) for one in candidates], job.task.main_metric
        shown = ", ".join(f"{labels[place]} {evaluate.shown(metric, scores[place])}" for place in order)
        examples, ahead = _length(run, job, share).seen, order[: len(order) // 2]
        taken = f"{' and '.join(labels[place] for place in ahead)} {'is taken' if len(ahead) == 1 else 'go on'}"
        if share not in (told := run.facts.setdefault("trials_told", [])):
            run.event(
                "trials.compared",
                f"After {examples:,} training examples, on validation: {shown}; {taken}",
                examples=examples,
                scores={labels[place]: scores[place] for place in order},
            )
            told.append(share)
        candidates = [candidates[place] for place in ahead]
        share *= 2
    method, chosen = run.config.method, candidates[0]
    if not method.rivals() and chosen.type != method.type and "method" not in run.facts.get("provenance", {}):
        (told,) = method_checks.taken(method, job.task)
        run.event("method.adapted", told, method=method.type, chosen=chosen.type, task=job.task.type)
    if method.rivals() or chosen.type != method.type:
        run.provenance(method=chosen.type)
    return chosen


def _score(run: Run, job: Prepared, method: Method, teachers: Teachers, share: float) -> float:
    """The main metric on validation after a short training; what an earlier attempt found is not done again."""
    found: dict[str, float] = run.facts.setdefault("trials", {})
    key = f"{_label(method)} at {share}"
    if key in found:
        return found[key]
    name, training = _name(len(found) + 1), run.config.training
    answers, length = answers_of(run, job, teachers), _length(run, job, share)
    drawn = np.random.default_rng(training.seed).permutation(job.card.train)[: length.examples]
    rows = np.sort(drawn)
    phase = phase_of(
        run,
        job,
        name,
        method,
        models_of(run, job, first_of(teachers)),
        _of(answers, job, rows),
        length.epochs,
        training.learning_rate,
    )
    panel = panel_of(run, job, teachers)
    phase = replace(phase, train=job.train.take(rows), labelled=None, panel=panel, about=_label(method))
    fitted = train(phase, run)
    for role in (f"{name}-training", f"{name}-best"):
        run.store.drop(role)
    found[key] = fitted.score
    run.commit()
    return fitted.score


def _of(answers: Tensor | None, job: Prepared, examples: np.ndarray) -> Tensor | None:
    """The teacher's answers to these examples."""
    if answers is None:
        return None
    rows = job.train.rows_of(examples)
    return answers[job.train.tokens_of(rows) if job.train.per_token else rows]


def _candidates(run: Run, job: Prepared) -> list[Method]:
    """The method itself, then those that it is raced against and that would be served if they were named instead."""
    method, rivals = _own(run, job), run.config.method.rivals()
    if not rivals or _length(run, job, _SHARE).seen < _FEWEST_STEPS * run.config.training.batch_size:
        return [method]
    source = job.student.origin.config if run.config.student.source is not None else None
    offered = shapes.offers(
        run.config.student,
        config_facts_of(job.blueprint.config),
        None if source is None else config_facts_of(source),
    )
    facts = {
        "classes": job.task.outputs(job.card.labels),
        "teacher_layers": job.blueprint.layers,
        "student_layers": job.student.shape.depth,
    }
    able = [
        one
        for one in rivals
        if one != method
        and serves(one, job.task, offered)
        and not [*one.problems(**facts)]
        and not (job.card.unlabelled and method_checks.learns_labels_alone(one))
        and not (job.more and several_teachers.refuses(one))
    ]
    return [method, *able]


def _own(run: Run, job: Prepared) -> Method:
    """The job's method, or what it takes in its place for the task; a training that was begun by a version that took
    nothing in its place goes on as it is."""
    method = run.config.method
    taken: str = run.facts.get("provenance", {}).get("method", method.type)
    begun = run.store.has("distilling-training") or run.store.has("distilling")
    return method if begun and taken == method.type else method.for_task(job.task)


def _length(run: Run, job: Prepared, share: float) -> _Length:
    """Of a trial that takes this share of the training's steps: over all examples where that is once or more."""
    wanted = round(job.card.train * run.config.training.epochs * share)
    epochs = max(1, math.ceil(wanted / job.card.train))
    return _Length(round(wanted / epochs), epochs)


def _label(method: Method) -> str:
    return f"method {method.type!r}"


def _name(number: int) -> str:
    return f"{TRIAL}-{number}"
