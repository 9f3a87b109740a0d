"""The teacher's phase: a bare encoder is fine-tuned, any teacher is validated."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from limbeck import evaluate
from limbeck.cache import predict
from limbeck.config import FineTune
from limbeck.device import seed_everything
from limbeck.errors import Diverged, TeacherUnfit
from limbeck.loop import Phase, train
from limbeck.losses import require_finite
from limbeck.methods.base import Models
from limbeck.methods.none import FineTuning
from limbeck.phases import Weights, keep, phase_of
from limbeck.preparation import Prepared
from limbeck.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_JUDGE = "judge"


def ready_teacher(run: Run, job: Prepared) -> Weights:
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
    if not job.keep_head:
        layer = model.get_submodule(job.task.output_layer(job.blueprint.config.model_type))
        job.task.begin_head(layer, job.train)
    if job.finetune:
        fitted = train(_teacher_phase(run, job, job.finetune, model), run)
        model, score, epoch = fitted.model, fitted.score, fitted.epoch
    else:
        logits = predict(model, job.validation, job.task, run)
        if not torch.isfinite(torch.from_numpy(logits)).all():
            raise Diverged("The teacher's logits hold NaN or infinite values on the validation split.")
        answers = job.task.predictions(logits, job.task.judged(job.validation, logits))
        score = evaluate.score(job.task.main_metric, answers, job.task.truth(job.validation))
        epoch = None
    _require_fit(job, score)
    run.facts["teacher"] = {"validation": score, "epoch": epoch}
    run.event(
        "teacher.evaluated",
        f"{'Fine-tuned teacher' if job.finetune else 'Teacher'}: "
        f"{evaluate.shown(job.task.main_metric, score)} on validation",
        epoch=epoch,
        **{job.task.main_metric: score},
    )
    return keep(run, "teacher", model)


def judged_by(run: Run, job: Prepared, weights: Weights) -> Prepared:
    """The job with the teacher's answers to validation and test, where they are the only truth; asked once."""
    if job.task.labelled:
        return job
    if run.store.has(_JUDGE):
        found = run.store.read_tensors(_JUDGE)[0]
    else:
        model = run.device.place(job.build("teacher", weights))
        splits = {"validation": job.validation, "test": job.test}
        found = {name: torch.from_numpy(predict(model, data, job.task, run)) for name, data in splits.items()}
        for name, vectors in found.items():
            require_finite(vectors, f"the teacher's answers to the {name} split")
        run.store.write_tensors(_JUDGE, found, {})
        run.commit()
    return replace(
        job,
        validation=job.task.judged(job.validation, found["validation"].numpy()),
        test=job.task.judged(job.test, found["test"].numpy()),
    )


def _teacher_phase(run: Run, job: Prepared, tune: FineTune, model: PreTrainedModel) -> Phase:
    return phase_of(
        run, job, "teacher", FineTuning(), Models(model, lambda: model), None, tune.epochs, tune.learning_rate
    )


def _require_fit(job: Prepared, score: float) -> None:
    metric, truth = job.task.main_metric, job.task.truth(job.validation)
    guessing = evaluate.score(metric, job.task.guess(truth), truth)
    if score <= guessing:
        raise TeacherUnfit(
            f"The teacher's {metric} on validation is {evaluate.shown(metric, score)}, and always giving the most "
            f"common answer has {evaluate.shown(metric, guessing)}: there is nothing to learn from it. "
            + (
                "Give teacher.finetune more epochs or another learning rate."
                if job.finetune
                else "Let the job fine-tune it: teacher.finetune = true."
            )
        )
