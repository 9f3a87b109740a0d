"""Which examples count more: the choices of ``training.sample_weighting``.

A weighting gives each example a number of its own; :class:`limbeck.criterion.Criterion` divides these by their mean
over the batch, so that the weights have mean 1 and the learning rate keeps its meaning, and multiplies the losses of
the example's rows by them, those against the labels and those against the teacher's logits. Terms on hidden states and
attention are not weighted: what they match has no label and no answer that could be hard.

Imports no torch at module level: the API process reads these options.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from limbeck.errors import Problem
from limbeck.spec import Spec, type_tag

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.tasks.base import Task

_POINTER = "/training/sample_weighting"
#: Ranks over which a curriculum's weight falls to a third, beyond those that count whole.
_SLOPE = 0.05


class BaseWeighting(Spec, ABC):
    """Options of a weighting, and its numbers."""

    shorthand: ClassVar[str | None] = "type"
    #: Whether the student's present answers take part, so that the weights of a batch need all of it at once.
    by_student: ClassVar[bool] = False
    #: Whether the teacher's answers take part.
    by_teacher: ClassVar[bool] = True
    #: The kinds of answers (``Task.kind``) that it is defined for.
    kinds: ClassVar[tuple[str, ...]] = ("categorical", "binary", "value")
    #: Whether an example is placed among all others of the training split.
    ranked: ClassVar[bool] = False

    type: Any

    @property
    def needs_labels(self) -> bool:
        """Whether the true labels take part."""
        return False

    def problems(self, *, task: Task, uses_teacher: bool, method: str) -> Iterator[Problem]:
        """What forbids this weighting for such a task and method."""
        if task.kind == "vector":
            return  # nothing weighs these, which limbeck/embedding_checks.py says
        if task.kind not in self.kinds:
            yield Problem(
                _POINTER,
                f"found {self.type!r}, which needs the probability of an answer; {task.type!r} answers with a number; "
                "allowed: 'disagreement', 'curriculum'",
            )
        if self.by_teacher and not uses_teacher:
            yield Problem(
                _POINTER,
                f"found {self.type!r}, which needs a teacher's answers; the method {method!r} has none; "
                "allowed: 'focal'",
            )

    @abstractmethod
    def difficulties(self, task: Task, student: Tensor | None, teacher: Tensor | None, targets: Tensor) -> Tensor:
        """How hard each row is, (units,) in float32, from 0.

        Args:
            student: logits in rows, where :attr:`by_student`.
            teacher: likewise, where :attr:`by_teacher`.
            targets: (units,)
        """

    def weights(self, difficulties: Tensor, progress: float) -> Tensor:
        """What examples count before they are divided by their mean; where :attr:`ranked`, by their rank in 0 … 1.

        Args:
            progress: share that is done of the training's steps that learn answers.
        """
        return difficulties


class Focal(BaseWeighting):
    """``(1 - p)^gamma``, p the student's present probability of the truth: what it has learned counts less."""

    by_student: ClassVar[bool] = True
    by_teacher: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("categorical", "binary")

    type: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, gt=0, le=10)
    """The higher, the less what is known already counts (Lin et al. 2017, arXiv:1708.02002)."""

    @property
    def needs_labels(self) -> bool:
        return True

    def difficulties(self, task: Task, student: Tensor | None, teacher: Tensor | None, targets: Tensor) -> Tensor:
        assert student is not None
        return (1 - (-task.hard_losses(student, targets)).exp()).clamp_min(0) ** self.gamma


class Disagreement(BaseWeighting):
    """The divergence of the student's present answer from the teacher's, at temperature 1."""

    by_student: ClassVar[bool] = True

    type: Literal["disagreement"] = "disagreement"

    def difficulties(self, task: Task, student: Tensor | None, teacher: Tensor | None, targets: Tensor) -> Tensor:
        assert student is not None
        assert teacher is not None
        return task.soft_losses(student, teacher, 1.0)


class Entropy(BaseWeighting):
    """The entropy of the teacher's answer: what the teacher itself is unsure of counts more."""

    kinds: ClassVar[tuple[str, ...]] = ("categorical", "binary")

    type: Literal["entropy"] = "entropy"

    def difficulties(self, task: Task, student: Tensor | None, teacher: Tensor | None, targets: Tensor) -> Tensor:
        from limbeck.difficulty import entropies

        assert teacher is not None
        return entropies(task, teacher)


class Curriculum(BaseWeighting):
    """From easy to hard: first the examples that the teacher finds easy count, at the end all alike.

    The share of the training examples that count whole, the easiest, grows from ``start`` to 1 (Platanios et al. 2019,
    competence-based curriculum, arXiv:1903.09848); of the others each counts less the farther it lies beyond.
    """

    ranked: ClassVar[bool] = True

    type: Literal["curriculum"] = "curriculum"
    by: Literal["loss", "entropy"] = "loss"
    """What is hard: where the teacher's loss against the label is high, or the entropy of its answer."""
    pacing: Literal["root", "linear"] = "root"
    """How the share grows: fast at first, as the square root (the paper's better one), or in a line."""
    start: float = Field(default=0.2, gt=0, le=1)
    """The share at the first step."""
    until: float = Field(default=0.5, gt=0, le=1)
    """Share of the steps after which all examples count alike: of those of all parts of a method that learn answers."""

    @property
    def needs_labels(self) -> bool:
        return self.by == "loss"

    def problems(self, *, task: Task, uses_teacher: bool, method: str) -> Iterator[Problem]:
        yield from super().problems(task=task, uses_teacher=uses_teacher, method=method)
        if self.by == "entropy" and task.kind == "value":
            yield Problem(f"{_POINTER}/by", f"found 'entropy'; {task.type!r} answers with a number; allowed: 'loss'")

    def difficulties(self, task: Task, student: Tensor | None, teacher: Tensor | None, targets: Tensor) -> Tensor:
        from limbeck.difficulty import entropies

        assert teacher is not None
        return task.hard_losses(teacher, targets) if self.by == "loss" else entropies(task, teacher)

    def competence(self, progress: float) -> float:
        """The share of the examples that count whole."""
        done = min(1.0, progress / self.until)
        if self.pacing == "linear":
            return self.start + (1 - self.start) * done
        return math.sqrt(self.start**2 + (1 - self.start**2) * done)

    def weights(self, difficulties: Tensor, progress: float) -> Tensor:
        return (-(difficulties - self.competence(progress)).clamp_min(0) / _SLOPE).exp()


SampleWeighting = Annotated[
    Annotated[Focal, Tag("focal")]
    | Annotated[Disagreement, Tag("disagreement")]
    | Annotated[Entropy, Tag("entropy")]
    | Annotated[Curriculum, Tag("curriculum")],
    Discriminator(type_tag),
]
"""``training.sample_weighting``."""
