"""What the task ``embeddings`` asks of a configuration: which methods, students and teachers make sense for vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from limbeck import method_checks, shapes
from limbeck.errors import Problem

if TYPE_CHECKING:
    from limbeck.config import DistillConfig
    from limbeck.model_folder import ModelFacts
    from limbeck.tasks.embeddings import Embeddings


def alone(config: DistillConfig, task: Embeddings) -> Iterator[Problem]:
    """What can be seen without teacher and data, but for whether these are pairs with scores (``task.labelled``)."""
    method, weighting = config.method, config.training.sample_weighting
    if method_checks.learns_labels_alone(method) and not task.labelled:
        options = "" if method.labels_alone else " with these options"
        yield Problem(
            "/method",
            f"found {method.type!r}, which{options} learns from scores alone; texts without scores have none: take "
            "auto or kd, with an alpha above 0, or give pairs of texts with scores",
        )
    if config.teacher.finetune and not task.labelled:
        yield Problem(
            "/teacher/finetune",
            "found a fine-tuning, which needs pairs of texts with scores; texts without scores do not show what is "
            "alike: leave it out",
        )
    if method.type == "self" and not config.teacher.finetune:
        yield Problem(
            "/method",
            "found 'self': its student begins as the teacher before the fine-tuning, and a teacher that is used as it "
            "is would be copied: set teacher.finetune (which needs scores), or take auto or kd",
        )
    if method.type == "noise" and getattr(method, "kind", None) == "random":
        yield Problem(
            "/method/kind", "found 'random', which puts classes in another order; a vector has none; allowed: permuted"
        )
    if weighting is not None:
        yield Problem(
            "/training/sample_weighting",
            f"found {weighting.type!r}; texts of embeddings have neither an answer that could be wrong nor a "
            "probability: leave it out",
        )
    yield from _student(config, task)


def _student(config: DistillConfig, task: Embeddings) -> Iterator[Problem]:
    """What its options ask of a model that vectors are pooled from."""
    student = config.student
    if student.recurrent:
        yield Problem(
            "/student/architecture",
            f"found {student.architecture!r}, which has no states of single tokens to pool: take 'transformer'",
        )
    if student.prune is not None and student.prune.heads is not None:
        yield Problem(
            "/student/prune/heads",
            "found a share of heads to prune; a student of embeddings is a plain encoder, which has all: leave it out",
        )
    if student.prune is not None and not task.labelled:
        yield Problem(
            "/student/prune",
            "found a share to prune; what matters is measured by the loss against scores, which these texts have none "
            "of: leave it out",
        )


def against_teacher(
    config: DistillConfig, task: Embeddings, teacher: ModelFacts, origin: ModelFacts | None
) -> Iterator[Problem]:
    """Whether the teacher pools as the task does, and whether the student's vectors can be compared with its own.

    Args:
        origin: what the student is cut from; None where it is not known or does not fit.
    """
    yield from _pooling(task, teacher, "the teacher's own folder")
    if origin is None or config.student.recurrent:
        return
    width = shapes.resolve(config.student, origin).hidden_size
    if width != teacher.hidden_size:
        fields = {"preset": config.student.preset, "source": config.student.source}
        field = next((name for name, value in fields.items() if value is not None), "hidden_size")
        yield Problem(
            f"/student/{field}",
            f"found a width of {width}; the student's vectors are compared with the teacher's, and a projection "
            f"between them would not be part of a plain encoder: allowed is {teacher.hidden_size}",
        )


def among_teachers(
    config: DistillConfig, task: Embeddings, teacher: ModelFacts, more: Sequence[ModelFacts | None]
) -> Iterator[Problem]:
    """Whether the vectors of several teachers have a mean.

    Args:
        more: the facts of ``teacher.more``, each where it is known.
    """
    for facts, pointer in zip(more, config.teacher.pointers[1:], strict=False):
        if facts is None:
            continue
        yield from _pooling(task, facts, f"the folder of {pointer}")
        if facts.hidden_size != teacher.hidden_size:
            yield Problem(
                f"{pointer}/source",
                f"found a model whose vectors are {facts.hidden_size} wide; those of the first teacher are "
                f"{teacher.hidden_size}, and vectors of two widths have no mean",
            )


def _pooling(task: Embeddings, model: ModelFacts, who: str) -> Iterator[Problem]:
    if model.pooling not in (None, task.pooling):
        yield Problem(
            "/task/pooling",
            f"found {task.pooling!r}; {who} says {model.pooling!r}; allowed are 'mean' and 'cls', as the teacher was "
            "trained",
        )
