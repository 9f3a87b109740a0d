"""A distillation from its configuration to a student with a scorecard, in phases that are each done once.

    preparing    data set and teacher are fetched, texts become token ids
    teacher      a bare encoder is fine-tuned, any teacher is validated
    distilling   the teacher answers the training split once; the student learns; then the baseline, without a teacher
    evaluating   teacher, student and baseline answer the test split, once
    exporting    folders that transformers loads, ONNX, model card and scorecard

Whatever a phase ends with lies in ``workdir/state`` (``limbeck/checkpoint.py``); a run that is started again with the
same folder goes on from there, and ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck import evaluate, hard_samples
from limbeck.batches import Collator, Encoded
from limbeck.cache import cache_key, kept_logits, predict, teacher_logits
from limbeck.callbacks import Callbacks, Stage
from limbeck.checkpoint import storage_errors
from limbeck.config import DistillConfig, FineTune
from limbeck.criterion import Criterion
from limbeck.device import seed_everything
from limbeck.errors import Diverged, Interrupted, OutOfMemory, TeacherUnfit
from limbeck.loop import Fitted, Phase, train
from limbeck.methods.base import Method, Models, SpecialTokens
from limbeck.methods.none import FineTuning
from limbeck.outcome import Evaluation, evaluate_model, export
from limbeck.preparation import Prepared, load_tokenizer, prepare
from limbeck.progress import TRAINING, Item, forward_work
from limbeck.pruning import most_important, neuron_importance
from limbeck.run import Run
from limbeck.scorecard import HARD_SAMPLES, Scorecard
from limbeck.students import renew_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.weighting import SampleWeighting

#: Seconds that timing a model, and writing a form of the student, take on a small machine; for the estimate only.
_TIMING_SECONDS = 3.0
_EXPORT_SECONDS = 10.0
#: Training texts on which the importance of neurons is measured.
_PRUNED_ON = 512


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What is known of the teacher."""

    source: str
    revision: str | None  #: the hub's commit
    sha256: str  #: of its weights as they came
    finetuned: bool
    epoch: int | None  #: the fine-tuning epoch whose weights were kept
    validation: float  #: main metric on validation


@dataclass(frozen=True, slots=True)
class DistillResult:
    """What a distillation leaves behind."""

    student: Path  #: a Hugging Face folder, with ``limbeck.json`` and ``onnx/``
    baseline: Path | None
    teacher: TeacherFacts
    scorecard: Scorecard
    provenance: dict[str, Any]  #: revisions, hashes, versions, device: what repeating the run needs
    hard_samples: tuple[Path, ...] = ()  #: the same table in two forms


def distill(
    config: DistillConfig,
    workdir: Path,
    *,
    callbacks: Callbacks | None = None,
    sources: Mapping[str, Path] = MappingProxyType({}),
    checkpoint_seconds: float = 60.0,
    expected: Mapping[str, str] = MappingProxyType({}),
) -> DistillResult:
    """Distil a student as ``config`` says, in ``workdir``.

    Args:
        config: see ``limbeck/config.py``.
        workdir: takes ``state/`` (what a later call goes on from) and ``output/`` (the result).
        callbacks: hears of progress, and says when to stop.
        sources: local folders of ``model:…`` and ``dataset:…`` references.
        checkpoint_seconds: between two checkpoints within a phase.
        expected: sha256 that the ``dataset`` and the ``teacher`` have to have, as an earlier run's provenance has them;
            what has another is refused before anything is trained.

    Raises:
        InvalidInput: the configuration, the data set or the teacher cannot be used.
        JobFailed: training diverged, the teacher is unfit, memory or disk ran out, an export is wrong.
        Interrupted: ``callbacks.should_stop()`` said so; call again to go on.
    """
    with failures_named():
        run = Run(config, workdir, callbacks or Callbacks(), checkpoint_seconds)
        try:
            job = prepare(run, sources, expected)
            _plan(run, job)
            teacher = _teacher(run, job)
            models = {"teacher": teacher, "student": _student(run, job, "distilling", config.method, teacher)}
            if _wants_baseline(config):
                models["baseline"] = _student(run, job, "baseline", FineTuning(), teacher)
            evaluations = _evaluate(run, job, models)
            if config.evaluation.hard_samples:
                _measure_difficulty(run, job, models)
            return _export(run, job, workdir / "output", models, evaluations)
        except Interrupted:
            run.commit()
            raise


def _wants_baseline(config: DistillConfig) -> bool:
    return config.evaluation.baseline and config.method.uses_teacher


def _plan(run: Run, job: Prepared) -> None:
    """Count the work of every phase, for the progress."""
    training, tune = run.config.training, job.finetune

    def once(config: Any, data: Encoded) -> float:
        return forward_work(config, int(config.num_hidden_layers), data.lengths)

    def learn(config: Any, data: Encoded, epochs: int) -> float:
        return epochs * (once(config, data) * TRAINING + once(config, job.validation))

    deep, shallow = job.blueprint.config, job.student.config()
    items = {
        "teacher": Item(
            Stage.TEACHER,
            learn(deep, job.own, tune.epochs) if tune else once(deep, job.validation),
        ),
        "distilling": Item(Stage.DISTILLING, learn(shallow, job.train, training.epochs)),
        "evaluate-teacher": Item(Stage.EVALUATING, once(deep, job.test)),
        "evaluate-student": Item(Stage.EVALUATING, once(shallow, job.test)),
        "exporting": Item(Stage.EXPORTING, seconds=_EXPORT_SECONDS + _TIMING_SECONDS * (3 + len(run.config.export))),
    }
    if _asks_teacher(run.config, "distilling"):
        items["cache"] = Item(Stage.DISTILLING, once(deep, job.train))
    if run.config.evaluation.hard_samples:
        answered = once(shallow, job.own) + once(shallow, job.validation) + once(deep, job.validation)
        items["difficulty"] = Item(Stage.EVALUATING, answered)
    if _wants_baseline(run.config):
        items["baseline"] = Item(Stage.DISTILLING, learn(shallow, job.labelled, _epochs(run.config, job, "baseline")))
        items["evaluate-baseline"] = Item(Stage.EVALUATING, once(shallow, job.test))
    trainings = [(job.train, training.epochs)]
    trainings += [(job.own, tune.epochs)] if tune else []
    trainings += [(job.labelled, _epochs(run.config, job, "baseline"))] if _wants_baseline(run.config) else []
    steps = sum(math.ceil(len(data) / training.batch_size) * epochs for data, epochs in trainings)
    run.meter.plan(items, steps)


def _epochs(config: DistillConfig, job: Prepared, name: str) -> int:
    """Of a phase. The baseline cannot learn from texts without labels: it gets as many steps from the others."""
    if name != "baseline":
        return config.training.epochs
    return round(config.training.epochs * len(job.train) / len(job.labelled))


Weights = dict[str, Tensor]


def _teacher(run: Run, job: Prepared) -> Weights:
    """The fine-tuned teacher's weights.

    Raises:
        Diverged: its logits are not finite.
        TeacherUnfit: it is not better on validation than the most common class.
    """
    if run.store.has("teacher"):
        return run.store.read_tensors("teacher")[0]
    run.meter.begin("teacher")
    seed_everything(run.config.training.seed)
    model = run.device.place(job.blueprint.load_teacher(keep_head=job.keep_head))
    if job.finetune:
        fitted = train(_teacher_phase(run, job, job.finetune, model), run)
        model, score, epoch = fitted.model, fitted.score, fitted.epoch
    else:
        logits = predict(model, job.validation, job.task, run)
        if not torch.isfinite(torch.from_numpy(logits)).all():
            raise Diverged("The teacher's logits hold NaN or infinite values on the validation split.")
        score = evaluate.score(job.task.main_metric, job.task.predictions(logits), job.validation.labels)
        epoch = None
    _require_fit(job, score)
    run.facts["teacher"] = {"validation": score, "epoch": epoch}
    run.event(
        "teacher.evaluated",
        f"{'Fine-tuned teacher' if job.finetune else 'Teacher'}: {100 * score:.1f} % on validation",
        epoch=epoch,
        **{job.task.main_metric: score},
    )
    return _keep(run, "teacher", model)


def _teacher_phase(run: Run, job: Prepared, tune: FineTune, model: PreTrainedModel) -> Phase:
    return _phase(
        run, job, "teacher", FineTuning(), Models(model, lambda: model), None, tune.epochs, tune.learning_rate
    )


def _require_fit(job: Prepared, score: float) -> None:
    guessing = evaluate.majority(job.validation.labels)
    if score <= guessing:
        raise TeacherUnfit(
            f"The teacher has an {job.task.main_metric} of {100 * score:.1f} % on validation, and always answering "
            f"with the most common class has {100 * guessing:.1f} %: there is nothing to learn from it. "
            + (
                "Give teacher.finetune more epochs or another learning rate."
                if job.finetune
                else "Let the job fine-tune it: teacher.finetune = true."
            )
        )


def _student(run: Run, job: Prepared, name: str, method: Method, teacher: Weights) -> Weights:
    """Train a student from the teacher's layers by ``method``; ``name`` is its phase."""
    if run.store.has(name):
        return run.store.read_tensors(name)[0]

    def load() -> PreTrainedModel:
        model = job.blueprint.build(job.blueprint.layers, teacher)
        model.train(False).requires_grad_(False)
        return run.device.place(model)

    logits = None
    if _asks_teacher(run.config, name):
        key = cache_key(run, job.teacher_sha256, job.card.sha256)
        logits = teacher_logits(load, job.train, job.task, key, len(job.card.labels), run)
    student = run.device.place(job.student.start(_start(run, job, teacher), _neurons(run, job, load)))
    models = Models(student, load, job.layers, lambda: special_tokens(job), run.config.training.seed)
    epochs, rate = _epochs(run.config, job, name), run.config.training.learning_rate
    fitted = train(_phase(run, job, name, method, models, logits, epochs, rate), run)
    _say_trained(run, job, name, fitted)
    return _keep(run, name, fitted.model)


def special_tokens(job: Prepared) -> SpecialTokens:
    """The tokenizer's special ids in the compact vocabulary, which keeps them all."""
    tokenizer = load_tokenizer(job.blueprint.folder, job.blueprint.config)
    places = {int(full): place for place, full in enumerate(job.blueprint.vocabulary.kept)}
    mask = tokenizer.mask_token_id
    return SpecialTokens(
        None if mask is None else places[mask], tuple(places[one] for one in tokenizer.all_special_ids)
    )


def _neurons(run: Run, job: Prepared, load: Callable[[], PreTrainedModel]) -> list[Tensor] | None:
    """The neurons that pruning leaves in each of the student's layers; found once, for the student and its baseline."""
    prune, layers = run.config.student.prune, job.student.shape.layers
    if prune is None:
        return None
    if not run.store.has("pruning"):
        criterion = Criterion(job.task)
        collate = Collator(job.train, job.blueprint.compact(job.blueprint.config).pad_token_id or 0, run.device.torch)
        drawn = np.random.default_rng(run.config.training.seed).permutation(len(job.train))[:_PRUNED_ON]
        parts = np.array_split(drawn, max(1, len(drawn) // run.config.training.batch_size))
        found = neuron_importance(
            load(),
            [collate(part) for part in parts],
            lambda model, batch: criterion.hard(criterion.logits(model(**batch.inputs)), batch).value,
        )
        run.store.write_tensors("pruning", {"importance": found}, {})
        run.event(
            "student.pruned",
            f"{prune.neurons:.0%} of the neurons go, the least important on {len(drawn):,} training texts; "
            f"{job.student.shape.intermediate_size:,} stay in each layer",
            neurons=job.student.shape.intermediate_size,
        )
        run.commit()
    importance = run.store.read_tensors("pruning")[0]["importance"]
    chosen = importance[list(layers)] if len(importance) == job.blueprint.layers else importance
    return most_important(chosen, job.student.shape.intermediate_size)


def _start(run: Run, job: Prepared, teacher: Weights) -> Weights:
    """The weights that student and baseline are cut from: the teacher's, or those from before the job fine-tuned it."""
    if not run.config.method.before_finetuning:
        return teacher
    # Another head than the teacher began with: its own training would else be repeated as the baseline.
    seed_everything((run.config.training.seed + 1) % 2**32)
    if job.finetune:
        return dict(job.blueprint.load_teacher(keep_head=job.keep_head).state_dict())
    model = job.blueprint.build(job.blueprint.layers, teacher)
    renew_head(model)
    return dict(model.state_dict())


def _say_trained(run: Run, job: Prepared, name: str, fitted: Fitted) -> None:
    who = "Student" if name == "distilling" else "Baseline, the same student without a teacher"
    run.event(
        f"{'student' if name == 'distilling' else 'baseline'}.trained",
        f"{who}: {100 * fitted.score:.1f} % on validation (epoch {fitted.epoch} kept)",
        epoch=fitted.epoch,
        **{job.task.main_metric: fitted.score},
    )


def _phase(
    run: Run,
    job: Prepared,
    name: str,
    method: Method,
    models: Models,
    logits: Tensor | None,
    epochs: int,
    learning_rate: float,
) -> Phase:
    training = run.config.training
    data = {"teacher": job.own, "baseline": job.labelled}.get(name, job.train)
    return Phase(
        name=name,
        method=method,
        task=job.task,
        models=models,
        train=data,
        validation=job.validation,
        teacher_logits=logits,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        seed=training.seed,
        loss=training.loss,
        weighting=_weighting(run, name),
        labelled=len(job.labelled) if name == "distilling" and job.card.unlabelled else None,
    )


def _weighting(run: Run, name: str) -> SampleWeighting | None:
    """The baseline is the student's twin without a teacher: it gets the weights that take none, and no others."""
    weighting = run.config.training.sample_weighting
    if name == "teacher" or weighting is None:
        return None
    return weighting if name == "distilling" or not weighting.by_teacher else None


def _asks_teacher(config: DistillConfig, name: str) -> bool:
    """Whether the teacher's answers to the training split are needed after this phase begins, and so kept."""
    if name != "distilling":
        return False
    weighting = config.training.sample_weighting
    return (
        any(part.teacher_logits for part in config.method.parts())
        or (weighting is not None and weighting.by_teacher)
        or config.evaluation.hard_samples
    )


def _keep(run: Run, name: str, model: PreTrainedModel) -> Weights:
    """Make a finished model part of the state, in place of its training's."""
    weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    run.store.write_tensors(name, weights, {})
    run.store.drop(f"{name}-training")
    run.store.drop(f"{name}-best")
    run.meter.finish(name)
    run.commit()
    return weights


def _evaluate(run: Run, job: Prepared, models: Mapping[str, Weights]) -> dict[str, Evaluation]:
    """Each model on the test split; what an earlier attempt finished is read, not measured again."""
    done: dict[str, Any] = run.facts.setdefault("evaluations", {})
    for name, weights in models.items():
        if name in done:
            continue
        run.meter.begin(f"evaluate-{name}")
        done[name] = evaluate_model(name, run.device.place(_build(job, name, weights)), job, run).as_json()
        run.meter.finish(f"evaluate-{name}")
        run.commit()
    return {name: Evaluation(**done[name]) for name in models}


def _measure_difficulty(run: Run, job: Prepared, weights: Mapping[str, Weights]) -> None:
    """How hard each training and validation example is for the student; kept in the state, read by the export."""
    if run.store.has("difficulty"):
        return
    run.meter.begin("difficulty")
    student = run.device.place(_build(job, "student", weights["student"]))

    def teacher() -> PreTrainedModel:
        return run.device.place(_build(job, "teacher", weights["teacher"]))

    splits = {
        "train": (job.train, job.card.train, kept_logits(run)),
        "validation": (job.validation, len(job.validation), None),
    }
    examples = sum(count for _, count, _ in splits.values())
    tensors: dict[str, Tensor] = {}
    for name, (data, count, logits) in splits.items():
        columns = hard_samples.measure(
            student,
            teacher,
            data,
            count,
            job.task,
            run,
            logits,
            done=lambda more: run.meter.advance(more / examples, examples=more),
        )
        tensors |= {f"{name}.{column}": values for column, values in columns.items()}
    run.store.write_tensors("difficulty", tensors, {})
    run.store.drop("cache")
    run.meter.finish("difficulty")
    run.commit()


def _build(job: Prepared, name: str, weights: Weights) -> PreTrainedModel:
    return job.blueprint.build(job.blueprint.layers, weights) if name == "teacher" else job.student.build(weights)


def _export(
    run: Run, job: Prepared, output: Path, weights: Mapping[str, Weights], evaluations: Mapping[str, Evaluation]
) -> DistillResult:
    run.meter.begin("exporting")
    models = {name: _build(job, name, found) for name, found in weights.items()}
    scorecard = export(run, job, output, models, evaluations)
    run.meter.finish("exporting")
    teacher = TeacherFacts(
        source=run.config.teacher.source,
        revision=job.teacher_revision,
        sha256=job.teacher_sha256,
        finetuned=job.finetune is not None,
        **run.facts["teacher"],
    )
    run.commit()
    return DistillResult(
        student=output / "student",
        baseline=output / "baseline" if "baseline" in weights else None,
        teacher=teacher,
        scorecard=scorecard,
        provenance=run.facts["provenance"],
        hard_samples=tuple(output / name for name in HARD_SAMPLES) if run.store.has("difficulty") else (),
    )


@contextmanager
def failures_named() -> Iterator[None]:
    """Memory and disk that run out, however a library words it, become errors that people understand."""
    try:
        with storage_errors():
            yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise _out_of_memory(error) from error
        raise


def _out_of_memory(error: BaseException) -> OutOfMemory:
    first = (str(error).splitlines() or [""])[0]
    return OutOfMemory(
        "Memory ran out. A smaller training.batch_size or training.max_length, or training.gradient_accumulation, "
        f"needs less. ({first})"
    )
