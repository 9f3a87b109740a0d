"""What the models are worth on the test split, and the scorecard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck import evaluate, hard_samples, texts
from limbeck.batch_probe import PROBES
from limbeck.cache import predict
from limbeck.config import Gate
from limbeck.data.corpus import LABELLED_ONCE
from limbeck.errors import Diverged
from limbeck.families import depth_of, width_of
from limbeck.fewer_heads import kept_heads
from limbeck.phases import ensemble_of
from limbeck.preparation import Prepared, below
from limbeck.run import Run
from limbeck.scorecard import BatchProbe, Difficulty, Estimate, ExportCard, Latency, ModelCard, Scorecard, Verdict
from limbeck.students import has_words, word_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model's answers to the test split, and its shape."""

    architecture: str
    layers: int
    hidden_size: int
    parameters: int
    predictions: list[Any]  #: of each test example, as the task's metrics take them
    validation: dict[str, float]
    kept_heads: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_model(name: str, model: PreTrainedModel, job: Prepared, run: Run) -> Evaluation:
    """Answer the test split, once.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    kept = [f"answers-{name}-{split}" for split in ("validation", "test")]
    answers = job.task.predictions(predict(model, job.validation, job.task, run, keep=kept[0]), job.validation)
    # Last, so that an interruption never makes a model answer the test split again.
    logits = predict(
        model,
        job.test,
        job.task,
        run,
        done=lambda rows: run.meter.advance(rows / len(job.test), examples=rows),
        keep=kept[1],
    )
    for role in kept:  # what follows takes no time, and is committed with it
        run.store.drop(role)
    if not np.isfinite(logits).all():
        raise Diverged(f"The {name}'s logits hold NaN or infinite values on the test split.")
    predictions = job.task.predictions(logits, job.test)
    is_teacher = name.startswith("teacher")
    if is_teacher and name != "teacher":
        run.store.write_tensors(_tested(name), {"logits": torch.from_numpy(logits)}, {})
    _say_tested(run, job, "teacher" if is_teacher else name, name.replace("-", " ").capitalize(), predictions)
    of = job.blueprint if is_teacher else job.student.origin
    whole = is_teacher or not job.student.trimmed
    unused = of.vocabulary.full_size - len(of.vocabulary) if whole and has_words(model) else 0
    return Evaluation(
        architecture=type(model).__name__,
        layers=depth_of(model.config),
        hidden_size=width_of(model.config),
        parameters=sum(p.numel() for p in model.parameters()) + unused * (word_table(model).shape[1] if unused else 0),
        predictions=predictions.tolist() if isinstance(predictions, np.ndarray) else list(predictions),
        validation=evaluate.scores(job.task.metrics, answers, job.task.truth(job.validation)),
        kept_heads=kept_heads(model.config),
    )


def evaluate_together(
    run: Run, job: Prepared, evaluations: Mapping[str, Evaluation], validation: Tensor, test: Tensor | None
) -> Evaluation:
    """Several teachers as the one that the student has learned from; their sizes are sums.

    Args:
        evaluations: of each of them.
        validation: their logits together, :func:`limbeck.teaching.panel_answers`.
        test: likewise, where they do not follow from what each has answered there alone.
    """
    members = [evaluations[name] for name in job.members]
    if test is None:
        answered = [run.store.read_tensors(_tested(name))[0]["logits"] for name in job.members]
        ensemble = ensemble_of(run.config)
        assert ensemble is not None
        test = ensemble.over(job.task, torch.cat(answered, dim=-1), job.test)
    predictions = job.task.predictions(test.numpy(), job.test)
    if not run.facts.get("together_said"):
        _say_tested(run, job, "teachers", f"The {len(members)} teachers together", predictions)
        run.facts["together_said"] = True
    answers = job.task.predictions(validation.numpy(), job.validation)
    return Evaluation(
        architecture=" + ".join(one.architecture for one in members),
        layers=sum(one.layers for one in members),
        hidden_size=members[0].hidden_size,
        parameters=sum(one.parameters for one in members),
        predictions=predictions.tolist() if isinstance(predictions, np.ndarray) else list(predictions),
        validation=evaluate.scores(job.task.metrics, answers, job.task.truth(job.validation)),
    )


def _tested(name: str) -> str:
    """Where the state keeps what one of several teachers answered to the test split."""
    return f"tested-{name}"


def _say_tested(run: Run, job: Prepared, kind: str, who: str, predictions: Any) -> None:
    quality = evaluate.scores(job.task.metrics, predictions, job.task.truth(job.test))
    shown = ", ".join(f"{one.replace('_', ' ')} {evaluate.shown(one, value)}" for one, value in quality.items())
    run.event(f"{kind}.tested", f"{who} on the test split: {shown}", **quality)


def scorecard_of(
    run: Run,
    job: Prepared,
    evaluations: Mapping[str, Evaluation],
    latency: Mapping[str, tuple[Latency, ...]],
    exports: tuple[ExportCard, ...],
) -> Scorecard:
    """What all models are worth; ``latency`` is of each of ``evaluations``, ``exports`` are the student's forms."""
    seed, labels = run.config.training.seed, job.task.truth(job.test)
    cards = {name: _card(name, found, latency[name], job, seed) for name, found in evaluations.items()}
    answers = {name: found.predictions for name, found in evaluations.items()}
    retention = evaluate.retention(
        job.task.main_metric, student=answers["student"], teacher=answers["teacher"], labels=labels, seed=seed
    )
    recovery, note = _gap_recovery(job, answers, seed)
    unfit = _guessing(job, answers["teacher"])
    return Scorecard(
        task=job.task.type,
        method=run.config.method.type,
        chosen_method=_chosen(run),
        main_metric=job.task.main_metric,
        seed=seed,
        dataset=job.card,
        hardware=run.device.hardware(),
        teacher=cards["teacher"],
        teachers=_each_teacher(run, job, cards),
        student=cards["student"],
        baseline=cards.get("baseline"),
        retention=retention,
        retention_note=unfit,
        gap_recovery=recovery,
        gap_recovery_note=note,
        speedup={
            str(slow.batch_size): slow.p50_ms / fast.p50_ms
            for slow, fast in zip(latency["teacher"], latency["student"], strict=True)
        },
        compression=cards["teacher"].bytes / cards["student"].bytes,
        exports=exports,
        batch_probes=tuple(BatchProbe.model_validate(one) for one in run.facts.get(PROBES, {}).values()),
        minutes={stage: round(seconds / 60, 3) for stage, seconds in run.meter.state()["seconds"].items()},
        verdict=_verdict(run.config.gate, retention, unfit, latency["student"]),
    )


def _each_teacher(run: Run, job: Prepared, cards: Mapping[str, ModelCard]) -> tuple[ModelCard, ...]:
    """Of several, in their order, by the names that the user gave them."""
    return tuple(
        cards[name].model_copy(update={"name": spec.source})
        for name, spec in zip(job.members, run.config.teacher.models, strict=True)
        if job.more
    )


def _chosen(run: Run) -> str | None:
    """The method that trained the student (``limbeck/trials.py``), where that was not the job's own."""
    found: str | None = run.facts.get("provenance", {}).get("method")
    return None if found == run.config.method.type else found


def difficulty_of(run: Run, job: Prepared, output: Path, evaluations: Mapping[str, Evaluation]) -> Difficulty:
    """Write the table of hard samples, and sum it up."""
    columns, _ = run.store.read_tensors("difficulty")
    measured = {split: below(columns, split) for split in hard_samples.SPLITS}
    shown = texts.unpack(job.texts)
    hard_samples.write(output, measured, shown)
    one_class = job.task.type in LABELLED_ONCE
    found = hard_samples.summary(
        measured,
        shown,
        {name: model.predictions for name, model in evaluations.items()},
        job.test.labels if one_class else None,
        job.card.labels,
    )
    run.event("difficulty.measured", _said(found), lost=found.lost, won=found.won)
    return found


def _said(found: Difficulty) -> str:
    if not found.lost:
        return "Hard samples: the losses of student and teacher on each training and validation example"
    counts = ", ".join(f"{count:,} of {split}" for split, count in found.lost.items())
    return f"Hard samples: the teacher is right and the student wrong on {counts}; hard_samples.csv has each example"


def _card(name: str, found: Evaluation, latency: tuple[Latency, ...], job: Prepared, seed: int) -> ModelCard:
    return ModelCard(
        name=name,
        architecture=found.architecture,
        layers=found.layers,
        hidden_size=found.hidden_size,
        kept_heads=found.kept_heads,
        parameters=found.parameters,
        bytes=found.parameters * 4,
        metrics=evaluate.estimates(job.task.metrics, found.predictions, job.task.truth(job.test), seed=seed),
        validation=found.validation,
        latency=latency,
    )


def _gap_recovery(job: Prepared, answers: Mapping[str, Sequence[Any]], seed: int) -> tuple[Estimate | None, str | None]:
    if not job.task.labelled:
        return None, "There is no baseline: texts without scores teach nothing without a teacher."
    if "baseline" not in answers:
        return None, "There is no baseline: the job was told not to train one, or its method is the baseline's own."
    found = evaluate.gap_recovery(
        job.task.main_metric,
        student=answers["student"],
        teacher=answers["teacher"],
        baseline=answers["baseline"],
        labels=job.task.truth(job.test),
        seed=seed,
    )
    return found.estimate, found.note


def _guessing(job: Prepared, answers: Any) -> str | None:
    """What there is to say of a teacher that was fit on validation, and is no better than guessing on the test split:
    the job ends all the same, for the student is trained and its own figures are true."""
    metric, truth = job.task.main_metric, job.task.truth(job.test)
    worth, guessing = (evaluate.score(metric, one, truth) for one in (answers, job.task.guess(truth)))
    if worth > guessing:
        return None
    return (
        f"The teacher's {metric} on the test split is {evaluate.shown(metric, worth)}, and always giving the most "
        f"common answer has {evaluate.shown(metric, guessing)}: retention and gap recovery mean nothing."
    )


def _verdict(gate: Gate, retention: Estimate | None, unfit: str | None, latency: Sequence[Latency]) -> Verdict:
    """Whether the student reaches what the gate asks for, in torch on this machine.

    Args:
        unfit: why retention means nothing, so that no student can be said to reach it.
    """
    reasons = []
    if gate.min_retention is not None and (retention is None or unfit is not None):
        reasons.append(f"A retention of {gate.min_retention:.1%} was asked for. {unfit}")
    elif gate.min_retention is not None and retention is not None and retention.value < gate.min_retention:
        reasons.append(f"The student keeps {retention.value:.1%} of its teacher; asked for: {gate.min_retention:.1%}.")
    single = next(found.p95_ms for found in latency if found.batch_size == 1)
    if gate.max_p95_ms is not None and single > gate.max_p95_ms:
        reasons.append(f"One example takes {single:.1f} ms at the 95th percentile; allowed: {gate.max_p95_ms:g} ms.")
    return Verdict(passed=not reasons, reasons=tuple(reasons))
