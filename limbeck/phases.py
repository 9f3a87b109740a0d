"""What the phases of a distillation share: what each costs, how one is trained, and where its weights go.

The phases themselves: ``limbeck/teaching.py``, and ``limbeck/engine.py`` for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limbeck.batches import Encoded
from limbeck.cache import answers_key, cache_role, content_key, teacher_logits
from limbeck.callbacks import Stage
from limbeck.config import DistillConfig
from limbeck.device import seed_everything
from limbeck.ensemble import Ensemble, Panel
from limbeck.families import depth_of, width_of
from limbeck.methods.base import Method, Models
from limbeck.phase import Phase
from limbeck.preparation import Prepared, special_tokens
from limbeck.progress import TRAINING, Item, forward_work
from limbeck.pruning import PARTS, importance_of, kept_parts
from limbeck.run import Run
from limbeck.students import renew_head
from limbeck.teacher_pass import FirstTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.weighting import SampleWeighting

Weights = dict[str, Tensor]
#: Of each teacher, by the name of its phase; the first one's first.
Teachers = Mapping[str, Weights]
#: Prefix of the names of phases that try something out (``limbeck/trials.py``).
TRIAL = "trial"

#: Bytes that the states of the teacher's first token may take. The same everywhere: a student must not hang on the room
#: that a machine has.
MOST_STATES = 2**30

#: Seconds that timing a model, and writing a form of the student, take on a small machine; for the estimate only.
_TIMING_SECONDS = 3.0
_EXPORT_SECONDS = 10.0


def measures_hard_samples(config: DistillConfig, job: Prepared) -> bool:
    """Whether they are measured: not of vectors, of which none is hard or wrong by itself."""
    return config.evaluation.hard_samples and job.task.kind != "vector"


def wants_baseline(config: DistillConfig, job: Prepared) -> bool:
    return config.evaluation.baseline and config.method.uses_teacher and job.task.labelled


def plan(run: Run, job: Prepared, trials: Mapping[str, Item], trial_steps: int) -> None:
    """Count the work of every phase, for the progress."""
    training, shallow = run.config.training, job.student.config()

    def once(config: Any, data: Encoded) -> float:
        return forward_work(config, depth_of(config), data.lengths)

    def learn(config: Any, data: Encoded, epochs: float, checked: Encoded) -> float:
        return epochs * once(config, data) * TRAINING + math.ceil(epochs) * once(config, checked)

    items = {
        **trials,
        "distilling": Item(Stage.DISTILLING, learn(shallow, job.train, training.epochs, job.validation)),
        "evaluate-student": Item(Stage.EVALUATING, once(shallow, job.test)),
        "exporting": Item(Stage.EXPORTING, seconds=_EXPORT_SECONDS + _TIMING_SECONDS * (3 + len(run.config.export))),
    }
    for name, read in job.members.items():
        deep, tune = read.blueprint.config, read.finetune
        checked = once(deep, read.validation)
        taught = learn(deep, read.own, tune.epochs, read.validation) if tune else checked
        items[name] = Item(Stage.TEACHER, taught)
        items[f"evaluate-{name}"] = Item(Stage.EVALUATING, once(deep, read.test))
        if asks_teacher(run.config, job, "distilling"):
            items[cache_role(name)] = Item(Stage.DISTILLING, once(deep, read.train))
    if measures_hard_samples(run.config, job):
        answered = once(shallow, job.own) + once(shallow, job.validation) + checked
        items["difficulty"] = Item(Stage.EVALUATING, answered)
    if wants_baseline(run.config, job):
        epochs = steps_of(run.config, job.train) / (steps_of(run.config, job.labelled) / training.epochs)
        items["baseline"] = Item(Stage.DISTILLING, learn(shallow, job.labelled, epochs, job.validation))
        items["evaluate-baseline"] = Item(Stage.EVALUATING, once(shallow, job.test))
    trainings = [(job.train, training.epochs)] * (2 if wants_baseline(run.config, job) else 1)
    trainings += [(read.own, read.finetune.epochs) for read in job.members.values() if read.finetune]
    steps = trial_steps + sum(math.ceil(data.groups / training.batch_size) * epochs for data, epochs in trainings)
    run.meter.plan(items, steps)


def steps_of(config: DistillConfig, data: Encoded) -> int:
    """Of the job's epochs over these examples."""
    return config.training.epochs * math.ceil(data.groups / config.training.batch_size)


def epochs_of(config: DistillConfig, job: Prepared, name: str) -> tuple[int, int | None]:
    """Of a phase, and the step at which the last one is cut off. The baseline cannot learn from texts without labels:
    it takes the student's steps with the others."""
    epochs, steps = config.training.epochs, steps_of(config, job.train)
    if name != "baseline" or steps == steps_of(config, job.labelled):
        return epochs, None
    return math.ceil(steps * epochs / steps_of(config, job.labelled)), steps


def phase_of(
    run: Run,
    job: Prepared,
    name: str,
    method: Method,
    models: Models,
    logits: Tensor | None,
    epochs: int,
    learning_rate: float,
    cut: int | None = None,
) -> Phase:
    training = run.config.training
    data = job.own if _is_teacher(name) else job.labelled if name == "baseline" else job.train
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
        ensemble=ensemble_of(run.config),
        token_budget=training.token_budget,
        cut=cut,
    )


def ensemble_of(config: DistillConfig) -> Ensemble | None:
    """How the answers of several teachers become one; None where there is one teacher."""
    teacher = config.teacher
    return Ensemble(len(teacher.models), teacher.combine) if teacher.more else None


def panel_of(run: Run, job: Prepared, teachers: Teachers) -> Callable[[], Panel] | None:
    """Loads several teachers whose answers are not kept, as one; None where there is one, or answers are kept."""
    ensemble = ensemble_of(run.config)
    if ensemble is None or not job.task.of_words:
        return None

    def load() -> Panel:
        return Panel([teacher_of(run, read, teachers[name])() for name, read in job.members.items()], ensemble)

    return load


def _is_teacher(name: str) -> bool:
    """Whether a phase is a teacher's."""
    return name.startswith("teacher")


def teacher_of(run: Run, job: Prepared, weights: Weights) -> Callable[[], PreTrainedModel]:
    """Loads the teacher, frozen and in ``eval()``."""

    def load() -> PreTrainedModel:
        model = job.blueprint.build(job.blueprint.layers, weights)
        model.train(False).requires_grad_(False)
        return run.device.place(model)

    return load


def answers_of(run: Run, job: Prepared, teachers: Teachers) -> Tensor | None:
    """The teacher's answers to the training split, where something asks for them: from the state, from the folder that
    jobs share, or computed; those of several teachers side by side, (rows, teachers · classes)."""
    if not asks_teacher(run.config, job, "distilling"):
        if job.task.of_words:
            _say_live(run, job)
        return None
    _say_live_states(run, job)
    return run.first(lambda: _all_answers(run, job, teachers))


def states_wanted(config: DistillConfig, job: Prepared, teacher: str) -> FirstTokens | None:
    """Which states of this teacher's first token are kept with its answers: of the first teacher those that the method
    names, unless they take too much room."""
    wanted = _states_named(config, job)
    if teacher != next(iter(job.members)) or not wanted.places or _bytes_of(wanted, job) > MOST_STATES:
        return None
    return wanted


def _states_named(config: DistillConfig, job: Prepared) -> FirstTokens:
    places = config.method.teacher_places(job.student.shape.depth, job.blueprint.layers)
    return FirstTokens(places, width_of(job.blueprint.config))


def _bytes_of(states: FirstTokens, job: Prepared) -> int:
    return 4 * len(job.train) * len(states.places) * states.width


def _say_live_states(run: Run, job: Prepared) -> None:
    """Once, where the method's states take too much room."""
    wanted = _states_named(run.config, job)
    size = _bytes_of(wanted, job)
    if size <= MOST_STATES or run.facts.get("live_said"):
        return
    run.event(
        "teacher.live",
        f"The teacher is asked for its states anew in every step: those of its first token in {len(wanted.places)} "
        f"layers would take {size:,} bytes, and {MOST_STATES:,} are kept at most",
        bytes=size,
    )
    run.facts["live_said"] = True


def _say_live(run: Run, job: Prepared) -> None:
    """Once, for whoever looks for the event that the teacher's answers were kept."""
    if run.facts.get("live_said") or not run.config.method.uses_teacher:
        return
    words, hidden = len(job.blueprint.vocabulary), job.train.answers
    who = (
        "The teacher is asked anew in every step: its"
        if not job.more
        else "Teachers are asked anew in every step: their"
    )
    run.event(
        "teacher.live",
        f"{who} answers choose among {words:,} tokens, and those to the {hidden:,} tokens hidden in one epoch would "
        f"take {4 * words * hidden * len(job.members):,} bytes",
        words=words,
        hidden=hidden,
    )
    run.facts["live_said"] = True


def _all_answers(run: Run, job: Prepared, teachers: Teachers) -> Tensor:
    found = []
    for name, read in job.members.items():
        config, weights = read.blueprint.config, teachers[name]
        answered = (config, weights, read.train, job.task)
        key, content = answers_key(run, *answered), content_key(*answered)
        load, width = teacher_of(run, read, weights), job.task.width(config)
        states = states_wanted(run.config, job, name)
        found.append(teacher_logits(load, read.train, job.task, key, width, run, cache_role(name), states, content))
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def first_of(teachers: Teachers) -> Weights:
    """The weights of the teacher from whose layers the student starts."""
    return next(iter(teachers.values()))


def models_of(run: Run, job: Prepared, teacher: Weights) -> Models:
    """The student at step 0, and the teacher that it starts from."""
    load = teacher_of(run, job, teacher)
    neurons, heads = (kept_parts(run, job, load, part) for part in PARTS)
    student = job.student.start(_start(run, job, teacher), neurons, heads)
    _begin_head(run, job, student)
    return Models(
        run.device.place(student),
        load,
        job.layers,
        lambda: special_tokens(job),
        run.config.training.seed,
        lambda part: importance_of(run, job, load, part),
    )


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


def _begin_head(run: Run, job: Prepared, student: PreTrainedModel) -> None:
    """Where the student's head is a new one, it begins where a teacher's new one does."""
    if job.task.kind == "vector":  # no head
        return
    renewed = run.config.method.before_finetuning and not (job.finetune and job.keep_head)
    if job.student.new_head or (job.student.options.source is None and renewed):
        recurrent = job.student.options.recurrent
        name = "classifier" if recurrent else job.task.output_layer(student.config.model_type)
        job.task.begin_head(student.get_submodule(name), job.own)


def _weighting(run: Run, name: str) -> SampleWeighting | None:
    """The baseline is the student's twin without a teacher: it gets the weights that take none, and no others."""
    weighting = run.config.training.sample_weighting
    if _is_teacher(name) or weighting is None:
        return None
    return weighting if name != "baseline" or not weighting.by_teacher else None


def asks_teacher(config: DistillConfig, job: Prepared, name: str) -> bool:
    """Whether the teacher's answers to the training split are needed after this phase begins, and so kept."""
    if name != "distilling" or job.task.of_words:
        return False
    weighting = config.training.sample_weighting
    return (
        any(part.teacher_logits for part in config.method.parts())
        or (weighting is not None and weighting.by_teacher)
        or measures_hard_samples(config, job)
    )


def keep(run: Run, name: str, model: PreTrainedModel) -> Weights:
    """Make a finished model part of the state, in place of its training's."""
    weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    run.store.write_tensors(name, weights, {})
    run.store.drop(f"{name}-training")
    run.store.drop(f"{name}-best")
    run.meter.finish(name)
    run.commit()
    return weights
