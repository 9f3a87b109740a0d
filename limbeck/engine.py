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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from limbeck import evaluate, method_checks
from limbeck.answer_files import STATES
from limbeck.assignment import Assignment
from limbeck.cache import kept_states
from limbeck.callbacks import Callbacks
from limbeck.checkpoint import storage_errors
from limbeck.config import DistillConfig
from limbeck.errors import Interrupted, OutOfMemory
from limbeck.exporting import export
from limbeck.hard_samples import measure_difficulty
from limbeck.launching import distill_in_ranks
from limbeck.loop import Fitted, train
from limbeck.memory import ran_out
from limbeck.methods.base import Method
from limbeck.methods.none import FineTuning
from limbeck.outcome import Evaluation, evaluate_model, evaluate_together
from limbeck.phases import (
    Teachers,
    Weights,
    answers_of,
    epochs_of,
    first_of,
    keep,
    measures_hard_samples,
    models_of,
    panel_of,
    phase_of,
    plan,
    wants_baseline,
)
from limbeck.preparation import Prepared, prepare
from limbeck.ranks import ALONE, Ranks
from limbeck.result import DistillResult, TeacherFacts
from limbeck.run import Run
from limbeck.scorecard import HARD_SAMPLES
from limbeck.teacher_cache import TeacherCache
from limbeck.teaching import judged_by, live_answers, panel_answers, ready_teachers
from limbeck.timing import timed_seconds
from limbeck.trials import planned, settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def distill(
    config: DistillConfig,
    workdir: Path,
    *,
    callbacks: Callbacks | None = None,
    sources: Mapping[str, Path] = MappingProxyType({}),
    checkpoint_seconds: float = 60.0,
    expected: Mapping[str, str] = MappingProxyType({}),
    micro_batches: Mapping[str, int] = MappingProxyType({}),
    teacher_cache: TeacherCache | None = None,
) -> DistillResult:
    """Distil a student as ``config`` says, in ``workdir``.

    Args:
        config: see ``limbeck/config.py``.
        workdir: takes ``state/`` (what a later call goes on from) and ``output/`` (the result).
        callbacks: hears of progress, and says when to stop.
        sources: local folders of ``model:…`` and ``dataset:…`` references.
        checkpoint_seconds: between two checkpoints within a phase.
        expected: sha256 that the ``dataset`` and the ``teacher`` (and ``teacher/more/0`` …; of texts without labels
            ``training/augmentation/0`` …) have to have, as an earlier run's provenance has them; what has another is
            refused before anything is trained.
        micro_batches: what an earlier run's probe for ``training.gradient_accumulation: auto`` chose, as its
            provenance has it: taken without another probe, so that a repeat computes the same.
        teacher_cache: where teachers' answers are looked for and left to other jobs; it changes nothing but time.

    Raises:
        InvalidInput: the configuration, the data set or the teacher cannot be used.
        JobFailed: training diverged, the teacher is unfit, memory or disk ran out, an export is wrong.
        Interrupted: ``callbacks.should_stop()`` said so; call again to go on.

    With ``training.devices`` above 1 the work is done by as many processes, which this one starts and ends. Several
    ``training.hosts`` are refused: only the service's workers find each other.
    """
    assignment = Assignment(config, workdir, sources, checkpoint_seconds, expected, micro_batches)
    callbacks = callbacks or Callbacks()
    if config.training.devices > 1:
        return distill_in_ranks(assignment, callbacks, None if teacher_cache is None else teacher_cache.place)
    return distill_here(assignment, callbacks, teacher_cache)


def distill_here(
    assignment: Assignment, callbacks: Callbacks, teacher_cache: TeacherCache | None = None, ranks: Ranks = ALONE
) -> DistillResult:
    """The same within this process, which may be one of several ranks; those that do not lead do not return."""
    config, workdir = assignment.config, assignment.workdir
    timed_seconds()  # what is wrong with it is said before anything is trained
    with failures_named():
        run = Run(
            config,
            workdir,
            callbacks,
            assignment.checkpoint_seconds,
            teacher_cache,
            ranks,
            micro_batches=assignment.micro_batches,
        )
        try:
            job = run.in_turn(lambda: prepare(run, assignment.sources, assignment.expected))
            _say_unread(run, job)
            if job.layers:
                run.provenance(student_layers=list(job.layers))
            plan(run, job, *planned(run, job))
            teachers = ready_teachers(run, job)
            job = judged_by(run, job, teachers)
            method = settle(run, job, teachers)
            models = {**teachers, "student": _student(run, job, "distilling", method, teachers)}
            if wants_baseline(config, job):
                models["baseline"] = _student(run, job, "baseline", FineTuning(), teachers)
            run.part()
            evaluations = _evaluate(run, job, models)
            if measures_hard_samples(config, job):
                measure_difficulty(run, job, models)
            return _export(run, job, workdir / "output", models, evaluations)
        except Interrupted:
            run.commit()
            raise


def _student(run: Run, job: Prepared, name: str, method: Method, teachers: Teachers) -> Weights:
    """Train a student from the first teacher's layers by ``method``; ``name`` is its phase."""
    if run.store.has(name):
        return run.store.read_tensors(name)[0]

    logits = answers_of(run, job, teachers) if name == "distilling" else None
    models = models_of(run, job, first_of(teachers))
    if name == "distilling":
        _say_remarks(run, job, method, models.student)
    (epochs, cut), rate = epochs_of(run.config, job, name), run.config.training.learning_rate
    phase = phase_of(run, job, name, method, models, logits, epochs, rate, cut)
    states = kept_states(run) if name == "distilling" else None
    fitted = train(replace(phase, panel=panel_of(run, job, teachers), teacher_states=states), run)
    _say_trained(run, job, name, fitted)
    run.store.drop(STATES)
    return keep(run, name, fitted.model)


def _say_unread(run: Run, job: Prepared) -> None:
    if run.facts.get("unread_said"):
        return
    for sentence in method_checks.unread(run.config, job.task):
        run.event("option.unread", sentence)
    run.facts["unread_said"] = True


def _say_remarks(run: Run, job: Prepared, method: Method, student: PreTrainedModel) -> None:
    if run.facts.get("remarks_said"):
        return
    types = {"teacher": job.blueprint.config.model_type, "student": student.config.model_type}
    for remark in method.remarks(**types):
        run.event("method.adapted", remark, method=method.type, **types)
    run.facts["remarks_said"] = True


def _say_trained(run: Run, job: Prepared, name: str, fitted: Fitted) -> None:
    who = "Student" if name == "distilling" else "Baseline, the same student without a teacher"
    run.event(
        f"{'student' if name == 'distilling' else 'baseline'}.trained",
        f"{who}: {evaluate.shown(job.task.main_metric, fitted.score)} on validation ({fitted.kept})",
        epoch=fitted.epoch,
        **{job.task.main_metric: fitted.score},
    )


def _evaluate(run: Run, job: Prepared, models: Mapping[str, Weights]) -> dict[str, Evaluation]:
    """Each model on the test split; what an earlier attempt finished is read, not measured again."""
    done: dict[str, Any] = run.facts.setdefault("evaluations", {})
    for name, weights in models.items():
        if name in done:
            continue
        run.meter.begin(f"evaluate-{name}")
        reads = job.members.get(name, job)
        done[name] = evaluate_model(name, run.device.place(job.build(name, weights)), reads, run).as_json()
        run.meter.finish(f"evaluate-{name}")
        run.commit()
    found = {name: Evaluation(**done[name]) for name in models}
    if job.more:
        teachers = {name: models[name] for name in job.members}
        together = panel_answers(run, job, teachers)
        found["teacher"] = evaluate_together(run, job, found, together, live_answers(run, job, teachers, "test"))
    return found


def _export(
    run: Run, job: Prepared, output: Path, weights: Mapping[str, Weights], evaluations: Mapping[str, Evaluation]
) -> DistillResult:
    run.meter.begin("exporting")
    models = {name: job.build(name, found) for name, found in weights.items()}
    scorecard = export(run, job, output, models, evaluations)
    run.meter.finish("exporting")
    teachers = [
        TeacherFacts(
            source=spec.source,
            revision=read.teacher_revision,
            sha256=read.teacher_sha256,
            finetuned=read.finetune is not None,
            **run.facts[name],
        )
        for spec, (name, read) in zip(run.config.teacher.models, job.members.items(), strict=True)
    ]
    run.commit()
    return DistillResult(
        student=output / "student",
        baseline=output / "baseline" if "baseline" in weights else None,
        teacher=teachers[0],
        more_teachers=tuple(teachers[1:]),
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
    except (MemoryError, RuntimeError, OSError) as error:
        if not ran_out(error):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise OutOfMemory(
            'Memory ran out. training.gradient_accumulation = "auto" computes batches in parts that fit; a smaller '
            f"training.batch_size or training.max_length needs less, too. ({first})"
        ) from error
