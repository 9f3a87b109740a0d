"""What can be known to be wrong before any training, from the teacher's configuration and the data set's labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from limbeck import embedding_checks, image_checks, masked_lm_checks, method_checks, several_teachers, shapes
from limbeck.config import TASKS, DistillConfig, TeacherModel
from limbeck.config import Method as AnyMethod
from limbeck.data.cells import NUMBER
from limbeck.errors import Problem
from limbeck.families import families_for
from limbeck.label_names import matched, placed, said_of_placed
from limbeck.methods.base import Method
from limbeck.model_folder import ModelFacts
from limbeck.tasks.base import Task
from limbeck.tasks.embeddings import Embeddings
from limbeck.tasks.masked_lm import MaskedLM

#: The tasks whose data have a column of texts.
_OF_TEXTS = ("sequence_classification", "multi_label", "regression", "embeddings", "masked_lm")
#: The heads that answer for a text's tokens, which a recurrent student has not; ``masked_lm`` says so itself.
_OF_TOKENS = ("ForTokenClassification", "ForQuestionAnswering")
_METHODS = tuple(get_args(member)[1].tag for member in get_args(get_args(AnyMethod)[0]))


def check(
    config: DistillConfig,
    *,
    teacher: ModelFacts | None,
    labels: Sequence[str] | None,
    student: ModelFacts | None = None,
    task: str | None = None,
    pair: bool | None = None,
    more: Sequence[ModelFacts | None] = (),
) -> tuple[Problem, ...]:
    """Hold a configuration against its teacher, its data set and ``student.source``, each where it is known.

    Args:
        labels: of the data set.
        task: the ``type`` of the task that the data set is of.
        pair: whether its examples are two texts.
        more: the facts of ``teacher.more``, in its order.

    Returns:
        One problem for each thing that cannot work, with the JSON pointer of the field to change.
    """
    chosen = _chosen(config, task, pair)
    mismatched = () if config.task is None or task is None else tuple(_task(config.task, task, labels))
    if mismatched:
        labels = None  # those of another task
    unserved = tuple(_served(config, chosen))
    found: list[Problem] = [*unserved, *_objective(config, chosen, labels)]
    found += () if unserved else method_checks.alone(config, chosen or TASKS["sequence_classification"]())
    found += several_teachers.alone(config, chosen)
    found += mismatched
    if teacher is not None:
        config = config.model_copy(update={"student": config.method.student(config.student, teacher.layers)})
    origin = teacher if config.student.source is None else student
    reads = "text" if chosen is None else chosen.reads
    if reads == "image":
        of_models = tuple(image_checks.against_models(config, teacher, student, more))
        told = {one.pointer for one in of_models if one.pointer.startswith(("/method", "/student"))}
        found = [*(one for one in found if one.pointer not in told), *of_models]  # the later knows more
    if student is not None:
        found += _family(student, "student", None if chosen is None else reads)
        found += _length(config, student, "the student")
    misfits = () if origin is None else tuple(shapes.problems(config.student, origin))
    found += misfits
    if teacher is not None:
        # What is found of a method and a student that do not go together at all would only follow from that.
        refused = bool(misfits) or any(one.pointer == "/method" for one in found)
        unmet = () if refused else tuple(method_checks.against_models(config, teacher, student))
        found += unmet
        if isinstance(chosen, Embeddings):
            found += embedding_checks.against_teacher(config, chosen, teacher, None if misfits else origin)
            found += embedding_checks.among_teachers(config, chosen, teacher, more)
        if labels is not None and origin is not None and not (refused or unmet):
            classes = (chosen or TASKS["sequence_classification"]()).outputs(labels)
            count = shapes.depth(config.student, origin.layers, origin.stages)
            found += config.method.problems(classes=classes, teacher_layers=teacher.layers, student_layers=count)
    found += _teachers(config, (teacher, *more), chosen, labels)
    return tuple(dict.fromkeys(found))


def notes(
    config: DistillConfig,
    task: str | None,
    pair: bool | None,
    *,
    teachers: Sequence[ModelFacts | None] = (),
    labels: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """What the user has written and the job will not look at, and what it takes for granted, as sentences.

    Args:
        teachers: the facts of all of them, in their order.
        task, pair, labels: as for :func:`check`.
    """
    chosen = _chosen(config, task, pair)
    unread = method_checks.unread(config, chosen, written=True)
    taken = method_checks.taken(config.method, chosen)
    return (*unread, *taken, *_placed(config, chosen or TASKS["sequence_classification"](), teachers, labels or ()))


def _placed(
    config: DistillConfig, task: Task, teachers: Sequence[ModelFacts | None], labels: Sequence[str]
) -> Iterator[str]:
    """Of heads that are used as they are: whose outputs mean the data set's labels by their order alone."""
    for spec, facts in zip(config.teacher.models, teachers, strict=False):
        if spec.finetune or facts is None or facts.labels is None or not facts.has_head_for(task) or task.headless:
            continue
        if task.named and (taken := placed(facts.labels, labels)):
            yield said_of_placed(spec.source, taken)


def _chosen(config: DistillConfig, task: str | None, pair: bool | None) -> Task | None:
    """The task that the user names, else the data's, as far as it is known."""
    chosen: Task | None = config.task or (TASKS[task]() if task in TASKS else None)
    if chosen is not None and pair is not None:
        chosen = chosen.for_data(pair=pair)
    return chosen


def _teachers(
    config: DistillConfig, known: Sequence[ModelFacts | None], task: Task | None, labels: Sequence[str] | None
) -> Iterator[Problem]:
    """What forbids each teacher by itself; the facts are in the teachers' order."""
    for spec, pointer, facts in zip(config.teacher.models, config.teacher.pointers, known, strict=False):
        if facts is not None:
            yield from _teacher(config, spec, pointer, facts, task, labels)


def _teacher(
    config: DistillConfig,
    spec: TeacherModel,
    pointer: str,
    facts: ModelFacts,
    task: Task | None,
    labels: Sequence[str] | None,
) -> Iterator[Problem]:
    """What forbids this model as the teacher, or as one of several."""
    yield from _family(facts, pointer.strip("/"), None if task is None else task.reads)
    yield from _length(config, facts, "the teacher")
    yield from _finetuning(spec, pointer, facts, task)
    if labels is not None:
        yield from _labels(spec, pointer, facts, task or TASKS["sequence_classification"](), labels)


def _objective(config: DistillConfig, chosen: Task | None, labels: Sequence[str] | None) -> Iterator[Problem]:
    """Whether the loss and the weights mean something for the task's answers and the method."""
    task = chosen or TASKS["sequence_classification"]()
    training, method = config.training, config.method
    yield from training.loss.problems(task=task, classes=None if labels is None or task.of_words else len(labels))
    if training.sample_weighting is not None:
        yield from training.sample_weighting.problems(task=task, uses_teacher=method.uses_teacher, method=method.type)
    labels_alone = method_checks.learns_labels_alone(method)
    for index, augmentation in enumerate(training.augmentation):
        yield from augmentation.problems(
            at=f"/training/augmentation/{index}", task=task.type, labels_alone=labels_alone, method=method.type
        )

    student = config.student
    if student.recurrent and task.architecture in _OF_TOKENS:
        yield Problem(
            "/student/architecture",
            f"found {student.architecture!r}, which answers for a text as a whole; the task {task.type} asks for more: "
            "take 'transformer'",
        )
    if isinstance(chosen, Embeddings):
        yield from embedding_checks.alone(config, chosen)
    if isinstance(chosen, MaskedLM):
        yield from masked_lm_checks.alone(config)
    if task.reads == "image":
        yield from image_checks.alone(config)


def serves(method: Method, task: Task, offered: frozenset[str]) -> bool:
    """Whether a method serves the task, and a student that offers so much of ``limbeck.shapes.OFFERS``."""
    fits = (method.tasks is None or task.type in method.tasks) and not (method.labels_alone and not task.labelled)
    fits = fits and method.type not in task.refused
    fits = fits and task.reads in method.modalities
    return fits and method_checks.needs_of(method) <= offered


def _served(config: DistillConfig, task: Task | None) -> Iterator[Problem]:
    served = config.method.tasks
    if task is not None and config.method.type in task.refused:
        why = task.refused[config.method.type]
        allowed = ", ".join(name for name in _METHODS if name not in task.refused)
        yield Problem("/method", f"found {config.method.type!r}, which {why}; allowed for {task.type}: {allowed}")
    elif served is not None and task is not None and task.type not in served:
        allowed = ", ".join(sorted(served))
        yield Problem("/method", f"{config.method.type} does not serve the task {task.type}; its tasks: {allowed}")
    elif task is not None and task.reads not in config.method.modalities:
        yield Problem(
            "/method",
            f"{config.method.type} does not serve the task {task.type}: it works on texts; take auto, kd, minilm, "
            "patient, self, noise or none",
        )


def _family(model: ModelFacts, part: str, reads: str | None) -> Iterator[Problem]:
    """``reads`` is what the task's examples are; None where it is not known yet."""
    allowed = families_for("text") + families_for("image") if reads is None else families_for(reads)
    if model.model_type not in allowed:
        of = f" for {reads}s" if reads == "image" else ""
        yield Problem(
            f"/{part}/source", f"found a model of the type {model.model_type!r}; allowed{of}: {', '.join(allowed)}"
        )


def _length(config: DistillConfig, model: ModelFacts, who: str) -> Iterator[Problem]:
    wanted, most = config.training.max_length, model.max_positions
    if most is not None and wanted > most:
        yield Problem("/training/max_length", f"found {wanted}; {who} reads at most {most} tokens")


def _task(wanted: Task, task: str, labels: Sequence[str] | None) -> Iterator[Problem]:
    """One label for each text also reads as several of them, and where all are numbers, as numbers."""
    if wanted.type in ("embeddings", "masked_lm") and task in _OF_TEXTS:
        return  # their texts serve, and for embeddings numbers of pairs as scores
    numbers = wanted.type == "regression" and labels is not None and all(NUMBER.fullmatch(label) for label in labels)
    if wanted.type != task and not (task == "sequence_classification" and (wanted.type == "multi_label" or numbers)):
        yield Problem("/task", f"found {wanted.type!r}; the data set is of {task}")


def _finetuning(spec: TeacherModel, pointer: str, teacher: ModelFacts, task: Task | None) -> Iterator[Problem]:
    has_head = teacher.has_head if task is None else teacher.has_head_for(task)
    if spec.finetune is False and not has_head:
        yield Problem(
            f"{pointer}/finetune",
            f"found false, but the teacher ({teacher.architecture}) has no head{f' for {task.type}' if task else ''} "
            "to use as it is; leave it out, or set true",
        )


def _labels(
    spec: TeacherModel, pointer: str, teacher: ModelFacts, task: Task, labels: Sequence[str]
) -> Iterator[Problem]:
    """A head that is used as it is has to answer with the data set's labels."""
    if spec.finetune or task.headless or teacher.labels is None or not teacher.has_head_for(task):
        return
    if not task.named:
        if len(teacher.labels) != task.outputs(labels):
            yield Problem(
                f"{pointer}/source",
                f"the teacher's head has {len(teacher.labels)} outputs, {task.type} needs {task.outputs(labels)}; "
                "set teacher.finetune to train a new head",
            )
        return
    if matched(teacher.labels, labels) is None:
        yield Problem(
            f"{pointer}/source",
            f"the teacher answers with {_shown(teacher.labels)}; the data set has {_shown(labels)}; name them alike, "
            "in the data or in id2label of the teacher's config.json, or set teacher.finetune to train a new head",
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
