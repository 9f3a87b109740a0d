"""Module replacing: the student's layers take the places of the teacher's, more and more of them, in the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.errors import Problem
from limbeck.methods.base import Method, Models, Objective, Part, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.config import Student
    from limbeck.criterion import Criterion
    from limbeck.replacing import Hybrid

#: Where the authors' learning rates and run lengths bring p to 1.
_FULL = 0.68


class Theseus(Method):
    """Put the student's layers into the teacher, each in place of a group of its layers, and learn from the labels
    alone; at first few of them at a time, in the end all. No soft labels, no other weights to set.

    The teacher's layers (the predecessors) stay as they are and run in training mode, as in the authors' code: the
    student's layers (the successors) learn among neighbours with the dropout that those were fine-tuned with. Only the
    successors learn; embeddings, pooler and classifier are the teacher's and stay so.
    """

    paper: ClassVar[str | None] = (
        "Xu et al. 2020, BERT-of-Theseus: Compressing BERT by Progressive Module Replacing, arXiv:2002.02925"
    )

    labels_alone: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"layers", "teacher_layers", "own_layers"})

    one_teacher: ClassVar[str | None] = "its layers are replaced one by one, and its answers are learned by nobody"

    type: Literal["theseus"] = "theseus"
    replacing: Literal["linear", "constant", "additive"] = "linear"
    """``linear``: each group is replaced by chance, with a probability that rises step by step to 1. ``constant``: with
    a probability that stays, until from ``full`` on only successors are left. ``additive``: no chance; hidden states
    are the mean of both, in which the successor's weight rises as in ``linear``."""
    base: float = Field(default=0.3, gt=0, le=1)
    """The probability (or weight) at the first step; the one that stays, where it is ``constant``."""
    full: float | None = Field(default=None, gt=0, le=1)
    """Share of the steps after which only successors are left, to be fine-tuned without the teacher; default: 0.68, as
    in the paper's recipes."""
    rate: float | None = Field(default=None, gt=0)
    """What is added to ``base`` at every step, as the paper states it; in place of ``full``."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Theseus:
        if self.rate is not None and self.replacing == "constant":
            raise ValueError("rate is how fast a probability rises; with replacing = constant it does not")
        if self.rate is not None and self.full is not None:
            raise ValueError("rate and full both say when only successors are left: give one of them")
        return self

    def student(self, student: Student, teacher_layers: int) -> Student:
        """The paper's start: successor i begins as the teacher's layer i."""
        return student if student.init else student.model_copy(update={"init": "first"})

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        if 0 < student_layers <= teacher_layers and teacher_layers % student_layers:
            allowed = [str(count) for count in range(1, teacher_layers) if teacher_layers % count == 0]
            yield Problem(
                "/student/layers",
                f"found {student_layers}; theseus replaces groups of as many layers each, so that the number has to "
                f"divide the teacher's {teacher_layers}; allowed: {', '.join(allowed)}",
            )

    def share(self, step: int, steps: int) -> float:
        """p, the probability that a group is replaced at ``step`` (or the weight that its successor has)."""
        if self.rate is not None:
            return min(1.0, self.base + self.rate * step)
        end = (self.full or _FULL) * steps
        if step >= end:
            return 1.0
        if self.replacing == "constant":
            return self.base
        return self.base + (1 - self.base) * step / end

    def parts(self) -> tuple[Part, ...]:
        return (Part(),)

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        from limbeck.replacing import Hybrid

        return Replacing(self, models.student, Hybrid(models.student, models.teacher()), criterion, models.seed)


class Replacing(Objective):
    """The hard loss of a network that is part teacher, part student; ``student`` is that of the successors alone."""

    def __init__(
        self, method: Theseus, student: PreTrainedModel, hybrid: Hybrid, criterion: Criterion, seed: int
    ) -> None:
        # The predecessor is no part of the module: its weights come from the teacher again, not from a checkpoint.
        self.module = self.student = student
        self.method, self.hybrid, self.criterion, self.seed = method, hybrid, criterion, seed
        student.requires_grad_(False)
        for successor in hybrid.successors:
            successor.requires_grad_(True)

    def train_mode(self) -> None:
        self.student.train()
        self.hybrid.train()

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        network = self._network(self.method.share(step, steps), step)
        return {"hard_loss": self.criterion.hard(self.criterion.answer(network, batch, inside=True), batch)}

    def _network(self, share: float, step: int) -> PreTrainedModel:
        if share >= 1:
            return self.student
        if self.method.replacing == "additive":
            return self.hybrid.blended(share)
        return self.hybrid.drawn(share, seed=self.seed, step=step)
