"""The teacher's phase: a bare encoder is fine-tuned, any teacher is validated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from limbeck import evaluate
from limbeck.cache import predict
from limbeck.config import FineTune
from limbeck.device import seed_everything
from limbeck.errors import Diverged, InvalidModel, Problem, TeacherUnfit
from limbeck.label_names import placed, said_of_placed
from limbeck.loop import Fitted, train
from limbeck.losses import require_finite
from limbeck.methods.base import Models
from limbeck.methods.none import FineTuning
from limbeck.phase import Phase
from limbeck.phases import Teachers, Weights, ensemble_of, keep, panel_of, phase_of
from limbeck.preparation import Prepared
from limbeck.run import Run
from limbeck.students import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_JUDGE = "judge"
#: Where the state keeps what several teachers answer together to validation.
_PANEL = "panel"
#: What the last epoch of a training that is at its end does not gain any more, as a share of 1.
_RISING = 0.02
_NAME_THEM = "write their names as the data set has them into id2label of its config.json."


def ready_teachers(run: Run, job: Prepared) -> Teachers:
    """Every teacher's weights; of several, what they are worth together on validation is said as well.

    Raises:
        Diverged, TeacherUnfit: as :func:`ready_teacher`; each has to be fit.
        InvalidModel: weights cannot be loaded, ``student.source`` included; found before any teacher is fine-tuned.
    """
    missing = [name for name in job.members if not run.store.has(name)]
    for name in missing[1:]:  # the first is loaded next in any case
        _loaded(run, job.members[name], name)
    if missing and run.config.student.source is not None:
        with _told_at("/student/source"):
            job.student.origin.load_teacher(keep_head=job.student.keep_head)
    found = {name: ready_teacher(run, read, name) for name, read in job.members.items()}
    if len(found) > 1:
        panel_answers(run, job, found)
    return found


def ready_teacher(run: Run, job: Prepared, name: str = "teacher") -> Weights:
    """The fine-tuned teacher's weights.

    Args:
        job: as this teacher has it (:attr:`Prepared.members`).
        name: of its phase.

    Raises:
        Diverged: its logits are not finite.
        InvalidModel: its weights cannot be loaded.
        TeacherUnfit: it is not better on validation than the most common class.
    """
    if run.store.has(name):
        return run.store.read_tensors(name)[0]
    run.meter.begin(name)
    seed_everything(run.config.training.seed)
    model = run.device.place(_loaded(run, job, name))
    taken = _taken_by_place(job)
    if taken:
        run.event(
            "teacher.placed",
            said_of_placed(f"the {name.replace('-', ' ')}", taken),
            teacher=name,
        )
    if not job.keep_head:
        layer = model.get_submodule(job.task.output_layer(job.blueprint.config.model_type))
        job.task.begin_head(layer, job.own)
    fitted = train(_teacher_phase(run, job, name, job.finetune, model), run) if job.finetune else None
    if fitted is not None:
        model, score, epoch = fitted.model, fitted.score, fitted.epoch
    else:
        score, epoch = _worth(run, job, model), None
    _require_fit(job, score, name)
    run.facts[name] = {"validation": score, "epoch": epoch}
    who = name.replace("-", " ")
    run.event(
        "teacher.evaluated",
        f"{f'Fine-tuned {who}' if job.finetune else who.capitalize()}: "
        f"{evaluate.shown(job.task.main_metric, score)} on validation",
        epoch=epoch,
        teacher=name,
        **{job.task.main_metric: score},
    )
    if fitted is not None:
        _say_rising(run, job, name, fitted)
    return keep(run, name, model)


def _worth(run: Run, job: Prepared, model: PreTrainedModel) -> float:
    """The main metric, on validation, of a teacher that is used as it is."""
    logits = predict(model, job.validation, job.task, run)
    if not torch.isfinite(torch.from_numpy(logits)).all():
        raise Diverged("The teacher's logits hold NaN or infinite values on the validation split.")
    answers = job.task.predictions(logits, job.task.judged(job.validation, logits))
    return evaluate.score(job.task.main_metric, answers, job.task.truth(job.validation))


def _say_rising(run: Run, job: Prepared, name: str, fitted: Fitted) -> None:
    metric = job.task.main_metric
    scores = [point[metric] for point in fitted.history]
    if not still_rising(scores, len(job.validation)):
        return
    before = max(scores[:-1])
    run.event(
        "teacher.rising",
        f"The {name.replace('-', ' ')} was still rising: the last of its {len(scores)} epochs brought it from "
        f"{evaluate.shown(metric, before)} to {evaluate.shown(metric, scores[-1])} on validation. With more epochs "
        "(teacher.finetune.epochs) it may have more to teach",
        teacher=name,
        epochs=len(scores),
        gain=scores[-1] - before,
    )


def still_rising(scores: Sequence[float], rows: int) -> bool:
    """Whether a training was cut off in its rise: the learning rate is nearly 0 in the last epoch, so that one that
    still gains there is far from its end. Of such a teacher a student that goes on with the labels alone soon knows
    more.

    Args:
        scores: on validation after each epoch.
        rows: of validation; a gain within the standard error of so many says nothing.
    """
    return len(scores) > 1 and scores[-1] - max(scores[:-1]) > max(_RISING, 0.5 / math.sqrt(rows))


def _loaded(run: Run, job: Prepared, name: str) -> PreTrainedModel:
    """The model in a teacher's folder.

    Raises:
        InvalidModel: its weights do not fit; the field that names it is told.
    """
    number = int(name.partition("-")[2] or 1)
    with _told_at(f"{run.config.teacher.pointers[number - 1]}/source"):
        return job.blueprint.load_teacher(keep_head=job.keep_head)


@contextmanager
def _told_at(pointer: str) -> Iterator[None]:
    """Name the field in what is wrong with the model that it names."""
    try:
        yield
    except InvalidModel as error:
        raise InvalidModel(f"{pointer}: {error.message}", [Problem(pointer, error.message)]) from error


def panel_answers(run: Run, job: Prepared, teachers: Teachers) -> Tensor:
    """The answers of several teachers together to validation, in the form of one model's; asked once.

    Returns:
        Logits at temperature 1, (rows, classes); where each token is answered (tokens, classes).
    """
    return run.first(lambda: _panel(run, job, teachers))


def _panel(run: Run, job: Prepared, teachers: Teachers) -> Tensor:
    if not run.store.has(_PANEL):
        each = _answers(run, job, teachers, "validation")
        live = live_answers(run, job, teachers, "validation")
        together = _as_one(run, job, each, "validation") if live is None else live
        run.store.write_tensors(_PANEL, {"together": together}, {})
        _say_combined(run, job, each, together)
        run.commit()
    return run.store.read_tensors(_PANEL)[0]["together"]


def live_answers(run: Run, job: Prepared, teachers: Teachers, split: Literal["validation", "test"]) -> Tensor | None:
    """What several teachers answer together to a split, asked once, where it does not follow from what is kept of the
    answers of each; else None."""
    panel, role = panel_of(run, job, teachers), f"{_PANEL}-{split}"
    if panel is None:
        return None
    if not run.store.has(role):
        together: Any = panel()
        found = torch.from_numpy(predict(together, getattr(job, split), job.task, run))
        require_finite(found, f"the teachers' answers to the {split} split")
        run.store.write_tensors(role, {"together": found}, {})
        run.commit()
    return run.store.read_tensors(role)[0]["together"]


def _answers(run: Run, job: Prepared, teachers: Teachers, split: Literal["validation", "test"]) -> dict[str, Tensor]:
    """Each teacher's, over a whole split."""
    return {
        name: torch.from_numpy(predict(_placed(run, read, teachers[name]), getattr(read, split), job.task, run))
        for name, read in job.members.items()
    }


def _as_one(run: Run, job: Prepared, each: Mapping[str, Tensor], split: Literal["validation", "test"]) -> Tensor:
    """The teachers' answers to a split together; the answers themselves where there is one teacher."""
    ensemble, found = ensemble_of(run.config), list(each.values())
    return found[0] if ensemble is None else ensemble.over(job.task, torch.cat(found, dim=-1), getattr(job, split))


def _placed(run: Run, job: Prepared, weights: Weights) -> PreTrainedModel:
    return run.device.place(job.blueprint.build(job.blueprint.layers, weights))


def _say_combined(run: Run, job: Prepared, each: Mapping[str, Tensor], together: Tensor) -> None:
    metric, teacher = job.task.main_metric, run.config.teacher
    judged = job.task.judged(job.validation, together.numpy())

    def worth(answers: Tensor) -> float:
        return evaluate.score(metric, job.task.predictions(answers.numpy(), judged), job.task.truth(judged))

    score, alone = worth(together), {name: worth(answers) for name, answers in each.items()}
    how = "by how sure each is" if teacher.combine == "confidence" else "as their mean"
    method = run.config.method.for_task(job.task)
    inside = "; what the method compares inside a teacher is the first one's" * method.looks_inside
    shown = ", ".join(f"{name.replace('-', ' ')} {evaluate.shown(metric, value)}" for name, value in alone.items())
    run.event(
        "teachers.combined",
        f"The {len(alone)} teachers together ({how}): {evaluate.shown(metric, score)} on validation; alone: {shown}. "
        f"The student starts from the first one's layers and learns the answers of all{inside}",
        combine=teacher.combine,
        alone=alone,
        **{metric: score},
    )


def judged_by(run: Run, job: Prepared, teachers: Teachers) -> Prepared:
    """The job with the teacher's answers to validation and test, or those of all teachers together, where they are the
    only truth; asked once."""
    if job.task.labelled:
        return job
    if run.store.has(_JUDGE):
        found = run.store.read_tensors(_JUDGE)[0]
    else:
        splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
        found = {name: _as_one(run, job, _answers(run, job, teachers, name), name) for name in splits}
        for name, vectors in found.items():
            require_finite(vectors, f"the teacher's answers to the {name} split")
        run.store.write_tensors(_JUDGE, found, {})
        run.commit()

    def judged(read: Prepared) -> Prepared:
        return replace(
            read,
            validation=job.task.judged(read.validation, found["validation"].numpy()),
            test=job.task.judged(read.test, found["test"].numpy()),
            more=tuple(map(judged, read.more)),
        )

    return judged(job)


def _teacher_phase(run: Run, job: Prepared, name: str, tune: FineTune, model: PreTrainedModel) -> Phase:
    return phase_of(run, job, name, FineTuning(), Models(model, lambda: model), None, tune.epochs, tune.learning_rate)


def _taken_by_place(job: Prepared) -> str | None:
    """Which output of a head that is kept was taken for which label, where their order alone says so."""
    if not job.keep_head or not job.task.named or job.task.headless:
        return None
    config: Any = read_config(job.blueprint.folder)
    return placed([config.id2label[place] for place in range(config.num_labels)], job.card.labels)


def _require_fit(job: Prepared, score: float, name: str) -> None:
    metric, truth, who = job.task.main_metric, job.task.truth(job.validation), name.replace("-", " ")
    guessing = evaluate.score(metric, job.task.guess(truth), truth)
    if score <= guessing:
        taken = _taken_by_place(job)
        raise TeacherUnfit(
            f"The {who}'s {metric} on validation is {evaluate.shown(metric, score)}, and always giving the most "
            f"common answer has {evaluate.shown(metric, guessing)}: there is nothing to learn from it. "
            + (
                "Give teacher.finetune more epochs or another learning rate."
                if job.finetune
                else "Let the job fine-tune it: teacher.finetune = true."
            )
            + (f" Its outputs were taken in order ({taken}): if they mean others, " + _NAME_THEM if taken else "")
        )
