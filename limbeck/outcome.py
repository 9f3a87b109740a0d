"""The last phases: what the models are worth on the test split, the folders that they leave in, and the scorecard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck import evaluate, hard_samples, texts
from limbeck.cache import predict
from limbeck.config import DistillConfig, Gate
from limbeck.data.corpus import LABELLED_ONCE
from limbeck.errors import Diverged
from limbeck.exit_card import measure_exits
from limbeck.export import CALIBRATED_EXAMPLES, Exported, export_onnx, onnx_runner, rows_of, torch_runner
from limbeck.families import depth_of, pad_id_of, width_of
from limbeck.fewer_heads import kept_heads
from limbeck.latency import measure_latency, one_after_the_other
from limbeck.methods.fastbert import FastBert
from limbeck.modelcard import model_card
from limbeck.phases import ensemble_of
from limbeck.preparation import Prepared, below
from limbeck.run import Run
from limbeck.runtime import images
from limbeck.runtime.encoding import Row
from limbeck.scorecard import Difficulty, Estimate, ExportCard, Latency, ModelCard, Scorecard, Verdict
from limbeck.size_card import sub_networks
from limbeck.students import has_words, read_config, word_table
from limbeck.tokenizing import load_tokenizer
from limbeck.trimming import name_for_all, trimmed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.runtime.encoding import Row

#: Seconds that each model is timed at each batch size.
_TIMED = 1.0
#: Share of the exporting phase that is over once the exported forms are checked; for the progress only.
_EXPORTED = 0.6


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
    answers = job.task.predictions(predict(model, job.validation, job.task, run), job.validation)
    # Last, so that an interruption never makes a model answer the test split again.
    logits = predict(
        model,
        job.test,
        job.task,
        run,
        done=lambda rows: run.meter.advance(rows / len(job.test), examples=rows),
    )
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


def evaluate_together(run: Run, job: Prepared, evaluations: Mapping[str, Evaluation], validation: Tensor) -> Evaluation:
    """Several teachers as the one that the student has learned from; their sizes are sums.

    Args:
        evaluations: of each of them.
        validation: their logits together, :func:`limbeck.teaching.panel_answers`.
    """
    members = [evaluations[name] for name in job.members]
    answered = [run.store.read_tensors(_tested(name))[0]["logits"] for name in job.members]
    ensemble = ensemble_of(run.config)
    assert ensemble is not None
    logits = ensemble.over(job.task, torch.cat(answered, dim=-1), job.test).numpy()
    predictions = job.task.predictions(logits, job.test)
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


def write_folder(model: PreTrainedModel, folder: Path, job: Prepared, config: DistillConfig) -> None:
    """A model as a Hugging Face folder with its tokenizer, and ``limbeck.json`` for the runtime."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job.student.save(model, folder)
    # safetensors keeps it to the owner; whoever may read the folder may read all of it.
    (folder / "model.safetensors").chmod(0o644)
    if job.task.reads == "image":
        document = images.document_of(job.reader.folder)
        (folder / images.FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        beside: dict[str, Any] = {}
    else:
        mask = _write_tokenizer(folder, job, config.training.max_length)
        beside = {"mask": mask} if job.task.of_words else {}
    described = {
        "version": 1,
        "task": job.task.type,
        "labels": list(job.card.labels),
        "max_length": config.training.max_length,
        "pair": job.pair,
        **job.task.described(model.config),
        **beside,
    }
    job.task.write_beside(folder, model.config, config.training.max_length)
    (folder / "limbeck.json").write_text(json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, job: Prepared, max_length: int) -> str | None:
    """The student's tokenizer; how it writes a mask, if it has one."""
    tokenizer = load_tokenizer(job.reader.folder, read_config(job.reader.folder), job.task)
    if job.student.trimmed:
        tokenizer = trimmed(tokenizer, job.reader.vocabulary.kept)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    if job.student.trimmed:
        name_for_all(folder)
    return None if tokenizer.mask_token is None else str(tokenizer.mask_token)


def export(
    run: Run, job: Prepared, output: Path, models: Mapping[str, PreTrainedModel], evaluations: Mapping[str, Evaluation]
) -> Scorecard:
    """Write the student's and the baseline's folders, export and check the student, time everything, and sum it up.

    Args:
        models: ``teacher`` (or ``teacher-1`` …), ``student`` and perhaps ``baseline``.
        evaluations: of the same, and of several teachers together as ``teacher``.

    Raises:
        ExportFailed: the form ``onnx`` does not answer as the student does.
    """
    written = [name for name in models if name not in job.members]
    for name in written:
        run.poll()
        write_folder(models[name], output / name, job, run.config)
    student, pad_id = output / "student", pad_id_of(job.reader.config)
    # The ids of texts are those of the student's folder, compact ones where it is trimmed.
    kept = None if job.student.trimmed else job.reader.vocabulary.kept
    if job.student.trimmed:
        pad_id = job.reader.vocabulary.place(pad_id)
    rows = rows_of(job.test, kept)
    exported = export_onnx(
        student,
        run.config.export,
        rows,
        job.test if kept is None else job.reader.vocabulary.restore(job.test),
        task=job.task,
        seed=run.config.training.seed,
        calibration=_calibration(job, run.config, kept),
        poll=run.poll,
    )
    run.meter.advance(_EXPORTED)
    _tell(run, exported)
    exports = exported.cards
    measured = None
    if isinstance(run.config.method, FastBert):
        measured = measure_exits(
            run, job, run.config.method, models["student"], student, cast("list[Row]", rows), pad_id
        )
    elsewhere = {name: read for name, read in job.members.items() if read.test is not job.test}
    runners = {
        name: torch_runner(run.device.place(model), job.task, kept=kept, autocast=run.device.autocast)
        for name, model in models.items()
        if name not in elsewhere
    }
    runners |= {card.format: onnx_runner(student, card.format) for card in exports}
    latency: dict[str, tuple[Latency, ...]] = {}
    for name, read in elsewhere.items():
        # The same texts in other tokens, so that this teacher cannot take turns with the rest in one measurement.
        own, pad = read.blueprint.vocabulary.kept, pad_id_of(read.blueprint.config)
        place = run.device.place(models[name])
        alone = {name: torch_runner(place, job.task, kept=own, autocast=run.device.autocast)}
        latency |= measure_latency(alone, rows_of(read.test, own), pad_id=pad, seconds=_TIMED, poll=run.poll)
    latency |= measure_latency(runners, rows, pad_id=pad_id, seconds=_TIMED, poll=run.poll)
    if job.more:
        latency["teacher"] = one_after_the_other([latency[name] for name in job.members])
    exports = tuple(card.model_copy(update={"latency": latency[card.format]}) for card in exports)
    beside = {"exits": measured, "sub_networks": sub_networks(run, job), "refused_exports": exported.refused}
    scorecard = _scorecard(run, job, evaluations, latency, exports).model_copy(update=beside)
    if run.store.has("difficulty"):
        scorecard = scorecard.model_copy(update={"difficulty": _difficulty(run, job, output, evaluations)})
    for name in written:
        described = json.loads((output / name / "limbeck.json").read_text(encoding="utf-8"))
        text = model_card(
            scorecard,
            name,
            teacher=run.config.teacher.source,
            dataset=job.card.source,
            pair=job.pair,
            pooling=described.get("pooling", "mean"),
            mask=described.get("mask", ""),
        )
        (output / name / "README.md").write_text(text, encoding="utf-8")
    (output / "scorecard.json").write_text(scorecard.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return scorecard


def _calibration(job: Prepared, config: DistillConfig, kept: NDArray[np.int64] | None) -> list[Row]:
    """Some of the data set's own training texts, where a form measures its scales on them."""
    if "onnx-int8-static" not in config.export:
        return []
    order = np.random.default_rng(config.training.seed).permutation(job.card.train)
    return cast("list[Row]", rows_of(job.train.take(order[:CALIBRATED_EXAMPLES]), kept))


def _tell(run: Run, exported: Exported) -> None:
    for card in exported.cards:
        run.event(
            "student.exported",
            f"Student as {card.format}: {card.bytes:,} bytes, {card.label_agreement:.1%} of the answers as torch's "
            f"(measured on {card.examples:,} examples), logits within {card.max_logit_difference:.1g}",
            **card.model_dump(mode="json", include={"format", "bytes", "label_agreement", "max_logit_difference"}),
        )
    for one in exported.refused:
        run.event("student.export_refused", f"No student as {one.format}: {one.reason}", format=one.format)


def _scorecard(
    run: Run,
    job: Prepared,
    evaluations: Mapping[str, Evaluation],
    latency: Mapping[str, tuple[Latency, ...]],
    exports: tuple[ExportCard, ...],
) -> Scorecard:
    seed, labels = run.config.training.seed, job.task.truth(job.test)
    cards = {name: _card(name, found, latency[name], job, seed) for name, found in evaluations.items()}
    answers = {name: found.predictions for name, found in evaluations.items()}
    retention = evaluate.retention(
        job.task.main_metric, student=answers["student"], teacher=answers["teacher"], labels=labels, seed=seed
    )
    recovery, note = _gap_recovery(job, answers, seed)
    return Scorecard(
        task=job.task.type,
        method=run.config.method.type,
        main_metric=job.task.main_metric,
        seed=seed,
        dataset=job.card,
        hardware=run.device.hardware(),
        teacher=cards["teacher"],
        teachers=tuple(
            cards[name].model_copy(update={"name": spec.source})
            for name, spec in zip(job.members, run.config.teacher.models, strict=True)
            if job.more
        ),
        student=cards["student"],
        baseline=cards.get("baseline"),
        retention=retention,
        gap_recovery=recovery,
        gap_recovery_note=note,
        speedup={
            str(slow.batch_size): slow.p50_ms / fast.p50_ms
            for slow, fast in zip(latency["teacher"], latency["student"], strict=True)
        },
        compression=cards["teacher"].bytes / cards["student"].bytes,
        exports=exports,
        minutes={stage: round(seconds / 60, 3) for stage, seconds in run.meter.state()["seconds"].items()},
        verdict=_verdict(run.config.gate, retention, latency["student"]),
    )


def _difficulty(run: Run, job: Prepared, output: Path, evaluations: Mapping[str, Evaluation]) -> Difficulty:
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


def _verdict(gate: Gate, retention: Estimate, latency: Sequence[Latency]) -> Verdict:
    """Whether the student reaches what the gate asks for, in torch on this machine."""
    reasons = []
    if gate.min_retention is not None and retention.value < gate.min_retention:
        reasons.append(f"The student keeps {retention.value:.1%} of its teacher; asked for: {gate.min_retention:.1%}.")
    single = next(found.p95_ms for found in latency if found.batch_size == 1)
    if gate.max_p95_ms is not None and single > gate.max_p95_ms:
        reasons.append(f"One example takes {single:.1f} ms at the 95th percentile; allowed: {gate.max_p95_ms:g} ms.")
    return Verdict(passed=not reasons, reasons=tuple(reasons))
