"""What can be known to be wrong before any training, from the teacher's configuration and the data set's labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from limbeck.config import TASKS, DistillConfig
from limbeck.data.cells import NUMBER
from limbeck.errors import Problem
from limbeck.families import FAMILIES
from limbeck.sources import ModelFacts
from limbeck.tasks.base import Task


def check(
    config: DistillConfig, *, teacher: ModelFacts | None, labels: Sequence[str] | None, task: str | None = None
) -> tuple[Problem, ...]:
    """Hold a configuration against its teacher and its data set, each where it is known.

    Args:
        labels: of the data set.
        task: the ``type`` of the task that the data set is of.

    Returns:
        One problem for each thing that cannot work, with the JSON pointer of the field to change.
    """
    found: list[Problem] = []
    chosen: Task | None = config.task or (TASKS[task]() if task in TASKS else None)
    if config.task is not None and task is not None and labels is not None:
        found += _task(config.task, task, labels)
    if teacher is not None:
        found += _family(teacher)
        found += _depth(config, teacher)
        found += _length(config, teacher)
        found += _finetuning(config, teacher, chosen)
        if labels is not None:
            chosen = chosen or TASKS["sequence_classification"]()
            found += _labels(config, teacher, chosen, labels)
            layers = config.student.layers
            count = len(layers) if isinstance(layers, tuple) else layers or max(1, teacher.layers // 2)
            found += config.method.problems(
                classes=chosen.outputs(labels), teacher_layers=teacher.layers, student_layers=count
            )
    return tuple(dict.fromkeys(found))


def _family(teacher: ModelFacts) -> Iterator[Problem]:
    if teacher.model_type not in FAMILIES:
        yield Problem(
            "/teacher/source", f"found a model of the type {teacher.model_type!r}; allowed: {', '.join(FAMILIES)}"
        )


def _depth(config: DistillConfig, teacher: ModelFacts) -> Iterator[Problem]:
    layers = config.student.layers
    if isinstance(layers, int) and layers > teacher.layers:
        yield Problem(
            "/student/layers",
            f"found {layers}; the teacher has {teacher.layers} layers, so 1 to {teacher.layers} are allowed",
        )
    if isinstance(layers, tuple) and layers[-1] >= teacher.layers:
        yield Problem(
            "/student/layers", f"found layer {layers[-1]}; the teacher has the layers 0 to {teacher.layers - 1}"
        )


def _length(config: DistillConfig, teacher: ModelFacts) -> Iterator[Problem]:
    wanted, most = config.training.max_length, teacher.max_positions
    if most is not None and wanted > most:
        yield Problem("/training/max_length", f"found {wanted}; the teacher reads at most {most} tokens")


def _task(wanted: Task, task: str, labels: Sequence[str]) -> Iterator[Problem]:
    """One label for each text also reads as several of them, and where all are numbers, as numbers."""
    numbers = wanted.type == "regression" and all(NUMBER.fullmatch(label) for label in labels)
    if wanted.type != task and not (task == "sequence_classification" and (wanted.type == "multi_label" or numbers)):
        yield Problem("/task", f"found {wanted.type!r}; the data set is of {task}")


def _finetuning(config: DistillConfig, teacher: ModelFacts, task: Task | None) -> Iterator[Problem]:
    has_head = teacher.has_head if task is None else teacher.has_head_for(task)
    if config.teacher.finetune is False and not has_head:
        yield Problem(
            "/teacher/finetune",
            f"found false, but the teacher ({teacher.architecture}) has no head{f' for {task.type}' if task else ''} "
            "to use as it is; leave it out, or set true",
        )


def _labels(config: DistillConfig, teacher: ModelFacts, task: Task, labels: Sequence[str]) -> Iterator[Problem]:
    """A head that is used as it is has to answer with the data set's labels."""
    if config.teacher.finetune or teacher.labels is None or not teacher.has_head_for(task):
        return
    if not task.named:
        if len(teacher.labels) != task.outputs(labels):
            yield Problem(
                "/teacher/source",
                f"the teacher's head has {len(teacher.labels)} outputs, {task.type} needs {task.outputs(labels)}; "
                "set teacher.finetune to train a new head",
            )
        return
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(teacher.labels))
    same = {name.casefold() for name in teacher.labels} == {name.casefold() for name in labels}
    if len(teacher.labels) != len(labels) or not (unnamed or same):
        yield Problem(
            "/teacher/source",
            f"the teacher answers with {_shown(teacher.labels)}; the data set has {_shown(labels)}; "
            "set teacher.finetune to train a new head",
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
