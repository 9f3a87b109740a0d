"""What can be known to be wrong before any training, from the teacher's configuration and the data set's labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from limbeck.config import DistillConfig
from limbeck.errors import Problem
from limbeck.families import FAMILIES
from limbeck.sources import ModelFacts


def check(config: DistillConfig, *, teacher: ModelFacts | None, labels: Sequence[str] | None) -> tuple[Problem, ...]:
    """Hold a configuration against its teacher and its data set, each where it is known.

    Returns:
        One problem for each thing that cannot work, with the JSON pointer of the field to change.
    """
    found: list[Problem] = [*_task(config)]
    if teacher is not None:
        found += _family(teacher)
        found += _method_family(config, teacher)
        found += _depth(config, teacher)
        found += _length(config, teacher)
        found += _finetuning(config, teacher)
        if labels is not None:
            found += _labels(config, teacher, labels)
            layers = config.student.layers
            default = config.method.default_layers(teacher.layers)
            count = len(layers) if isinstance(layers, tuple) else layers or default
            found += config.method.problems(classes=len(labels), teacher_layers=teacher.layers, student_layers=count)
    return tuple(dict.fromkeys(found))


def _family(teacher: ModelFacts) -> Iterator[Problem]:
    if teacher.model_type not in FAMILIES:
        yield Problem(
            "/teacher/source", f"found a model of the type {teacher.model_type!r}; allowed: {', '.join(FAMILIES)}"
        )


def _task(config: DistillConfig) -> Iterator[Problem]:
    served, task = config.method.tasks, config.task
    if served is not None and task is not None and task.type not in served:
        yield Problem(
            "/method", f"{config.method.type} does not serve the task {task.type}; its tasks: {_listed(served)}"
        )


def _method_family(config: DistillConfig, teacher: ModelFacts) -> Iterator[Problem]:
    served = config.method.families
    if served is not None and teacher.model_type in FAMILIES and teacher.model_type not in served:
        yield Problem(
            "/method",
            f"{config.method.type} cannot take a {teacher.model_type} teacher's layers one by one; "
            f"it serves: {_listed(served)}",
        )


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


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


def _finetuning(config: DistillConfig, teacher: ModelFacts) -> Iterator[Problem]:
    if config.teacher.finetune is False and not teacher.has_head:
        yield Problem(
            "/teacher/finetune",
            f"found false, but the teacher ({teacher.architecture}) has no classification head to use as it is; "
            "leave it out, or set true",
        )


def _labels(config: DistillConfig, teacher: ModelFacts, labels: Sequence[str]) -> Iterator[Problem]:
    """A head that is used as it is has to answer with the data set's labels."""
    if config.teacher.finetune or teacher.labels is None:
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
