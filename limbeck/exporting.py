"""The last phase: the folders that the models leave in, the student's exported forms, and how fast all of them are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from limbeck.config import DistillConfig
from limbeck.exit_card import measure_exits
from limbeck.export import CALIBRATED_EXAMPLES, Exported, export_onnx, onnx_runner, rows_of, torch_runner
from limbeck.families import pad_id_of
from limbeck.latency import measure_latency, one_after_the_other
from limbeck.methods.fastbert import FastBert
from limbeck.modelcard import model_card
from limbeck.outcome import Evaluation, difficulty_of, scorecard_of
from limbeck.preparation import Prepared
from limbeck.run import Run
from limbeck.runtime import images
from limbeck.scorecard import ExportCard, Latency, Scorecard
from limbeck.size_card import sub_networks
from limbeck.students import read_config
from limbeck.timing import timed_seconds
from limbeck.tokenizing import load_tokenizer
from limbeck.trimming import name_for_all, trimmed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Encoded
    from limbeck.runtime.encoding import Row
    from limbeck.tasks.base import Task

#: Share of the exporting phase that is over once the exported forms are checked; for the progress only.
_EXPORTED = 0.6


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
    student, inputs = output / "student", _inputs(job)
    exported = _forms(run, job, student, inputs)
    run.meter.advance(_EXPORTED)
    _tell(run, exported)
    measured = None
    if isinstance(run.config.method, FastBert):
        rows = cast("list[Row]", inputs.rows)
        measured = measure_exits(run, job, run.config.method, models["student"], student, rows, inputs.pad_id)
    latency = _latencies(run, job, models, student, inputs, exported.cards)
    exports = tuple(card.model_copy(update={"latency": latency[card.format]}) for card in exported.cards)
    beside = {"exits": measured, "sub_networks": sub_networks(run, job), "refused_exports": exported.refused}
    scorecard = scorecard_of(run, job, evaluations, latency, exports).model_copy(update=beside)
    if run.store.has("difficulty"):
        scorecard = scorecard.model_copy(update={"difficulty": difficulty_of(run, job, output, evaluations)})
    for name in written:
        _write_card(run, job, scorecard, output / name)
    (output / "scorecard.json").write_text(scorecard.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return scorecard


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The test split as the student's folder reads it."""

    rows: list[Any]
    pad_id: int
    kept: NDArray[np.int64] | None  #: the whole vocabulary's id of each compact one; None: the ids are the folder's


def _inputs(job: Prepared) -> _Inputs:
    pad_id = pad_id_of(job.reader.config)
    # The ids of texts are those of the student's folder, compact ones where it is trimmed.
    kept = None if job.student.trimmed else job.reader.vocabulary.kept
    if job.student.trimmed:
        pad_id = job.reader.vocabulary.place(pad_id)
    return _Inputs(rows_of(job.test, kept), pad_id, kept)


def _forms(run: Run, job: Prepared, student: Path, inputs: _Inputs) -> Exported:
    return export_onnx(
        student,
        run.config.export,
        inputs.rows,
        _restored(job, job.test),
        task=job.task,
        seed=run.config.training.seed,
        judge=(rows_of(job.validation, inputs.kept), _restored(job, job.validation)),
        calibration=_calibration(job, run.config, inputs.kept),
        poll=run.poll,
    )


def _restored(job: Prepared, split: Encoded) -> Encoded:
    """A split in the tokens of the student's folder."""
    return split if job.student.trimmed else job.reader.vocabulary.restore(split)


def _latencies(
    run: Run,
    job: Prepared,
    models: Mapping[str, PreTrainedModel],
    student: Path,
    inputs: _Inputs,
    exports: Sequence[ExportCard],
) -> dict[str, tuple[Latency, ...]]:
    """Of each model in torch, of each exported form, and of several teachers together, as ``teacher``."""

    def runner(name: str, kept: NDArray[np.int64] | None) -> Any:
        return torch_runner(run.device.place(models[name]), job.task, kept=kept, autocast=run.device.autocast)

    elsewhere = {name: read for name, read in job.members.items() if read.test is not job.test}
    runners = {name: runner(name, inputs.kept) for name in models if name not in elsewhere}
    runners |= {card.format: onnx_runner(student, card.format) for card in exports}
    latency: dict[str, tuple[Latency, ...]] = {}
    seconds = timed_seconds()
    for name, read in elsewhere.items():
        # The same texts in other tokens, so that this teacher cannot take turns with the rest in one measurement.
        own, pad = read.blueprint.vocabulary.kept, pad_id_of(read.blueprint.config)
        alone = {name: runner(name, own)}
        latency |= measure_latency(alone, rows_of(read.test, own), pad_id=pad, seconds=seconds, poll=run.poll)
    latency |= measure_latency(runners, inputs.rows, pad_id=inputs.pad_id, seconds=seconds, poll=run.poll)
    if job.more:
        latency["teacher"] = one_after_the_other([latency[name] for name in job.members])
    return latency


def _write_card(run: Run, job: Prepared, scorecard: Scorecard, folder: Path) -> None:
    described = json.loads((folder / "limbeck.json").read_text(encoding="utf-8"))
    text = model_card(
        scorecard,
        folder.name,
        teacher=run.config.teacher.source,
        dataset=job.card.source,
        pair=job.pair,
        pooling=described.get("pooling", "mean"),
        mask=described.get("mask", ""),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


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
    _keep_cut(tokenizer, job.task, max_length)
    tokenizer.save_pretrained(folder)
    if job.student.trimmed:
        name_for_all(folder)
    return None if tokenizer.mask_token is None else str(tokenizer.mask_token)


def _keep_cut(tokenizer: Any, task: Task, max_length: int) -> None:
    """Have ``tokenizer.json`` say which end of a long text goes, where that is not the usual one: the runtime reads
    nothing else. Lists of tokens are cut behind, whatever the tokenizer does with texts."""
    backend = tokenizer.backend_tokenizer
    side = "right" if task.type == "token_classification" else tokenizer.truncation_side
    if side != (backend.truncation or {}).get("direction", "right"):
        backend.enable_truncation(max_length, direction=side)


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
