"""What can be known to be wrong with a job of several teachers from its configuration and its task alone."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck import method_checks
from limbeck.config import DistillConfig
from limbeck.errors import Problem
from limbeck.methods.base import Method
from limbeck.tasks.base import Task

#: Tasks whose answers have a mean: distributions, numbers, vectors.
_TASKS = (
    "sequence_classification",
    "image_classification",
    "multi_label",
    "regression",
    "token_classification",
    "question_answering",
    "embeddings",
    "masked_lm",
)


def refuses(method: Method) -> str | None:
    """Why a method with its options has no use for several teachers; None where it has."""
    learned = any(part.teacher_logits for part in method.parts()) and not method_checks.ignores_answers(method)
    if method.one_teacher is None and not learned:
        return "nothing of the teachers' answers is learned with these options"
    return method.one_teacher


def alone(config: DistillConfig, task: Task | None) -> Iterator[Problem]:
    """Whether method, loss and task have a meaning for what several teachers answer together."""
    teacher, method, loss = config.teacher, config.method, config.training.loss
    if not teacher.more:
        return
    at = "/teacher/more"
    if (reason := refuses(method)) is not None:
        yield Problem(
            at,
            f"found several teachers for the method {method.type!r}: {reason}; take auto or kd, with an alpha above 0",
        )
    if loss.of_one is not None:
        yield Problem(
            "/training/loss",
            f"found {loss.type!r} with several teachers: {loss.of_one}; allowed: kl, reverse_kl, jsd, dkd, dist",
        )
    if task is None:
        return
    if task.type not in _TASKS:
        yield Problem(at, f"found several teachers for {task.type}; allowed tasks: {', '.join(_TASKS)}")
    elif teacher.combine == "confidence" and task.kind in ("value", "vector"):
        what = "number" if task.kind == "value" else "vector"
        yield Problem(
            "/teacher/combine", f"found 'confidence'; an answer of {task.type} is a {what}, sure or not; allowed: mean"
        )
