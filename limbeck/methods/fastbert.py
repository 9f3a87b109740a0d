"""FastBERT: a small classifier behind every layer, so that at inference easy texts leave early.

Two parts. The first trains the model and its own head. In the second the model is frozen, and the branches learn its
last answers; they never see a label, so they cannot disagree with the model for the label's sake. Who leaves when is
chosen afterwards, per request (``limbeck/exits.py``); the default is calibrated on validation
(``limbeck/exit_card.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.errors import Problem
from limbeck.methods.base import Method, Models, Objective, Part, Term
from limbeck.methods.kd import TeacherAndLabels
from limbeck.methods.none import Labels

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.config import Student
    from limbeck.criterion import Criterion


class FastBert(Method):
    """A classifier behind every layer: at inference a text leaves where one of them is sure, and ``speed`` says how
    sure it has to be. The student keeps all of the teacher's layers unless ``student.layers`` says otherwise."""

    paper: ClassVar[str | None] = (
        "Liu et al. 2020, FastBERT: a Self-distilling BERT with Adaptive Inference Time, arXiv:2004.02178"
    )
    tasks: ClassVar[frozenset[str] | None] = frozenset({"sequence_classification"})
    needs: ClassVar[frozenset[str]] = frozenset({"steps"})
    no_labels: ClassVar[str | None] = "the branches"

    type: Literal["fastbert"] = "fastbert"
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Weight of the teacher's answers while the model itself is trained; the true labels get ``1 - alpha``. The paper,
    whose model has no teacher but itself, has 0."""
    temperature: float = Field(default=4.0, ge=0.1, le=100)
    """T, which softens the teacher's answers."""
    branch_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of the steps in which the branches are trained, and the model no longer; they cost half of the others."""
    branch_learning_rate: float = Field(default=10.0, gt=0, le=1000)
    """Factor on ``training.learning_rate`` for the branches, which start at random."""
    max_loss: float = Field(default=0.5, ge=0, le=100)
    """Points of the main metric on validation that the default ``speed`` may cost against the same student without
    exits."""
    floor: float | None = Field(default=None, ge=0, le=1)
    """What the default ``speed`` has to keep of the main metric on validation, as a share of 1; then ``max_loss`` does
    not count."""

    def student(self, student: Student, teacher_layers: int) -> Student:
        unsaid = student.layers is None and student.preset is None and student.source is None and not student.recurrent
        return student.model_copy(update={"layers": teacher_layers}) if unsaid else student

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        if student_layers < 2:
            yield Problem("/student/layers", f"found {student_layers}; with fastbert 2 and more are allowed")
        if classes < 2:
            yield Problem(
                "/method", f"fastbert tells how sure an answer is from 2 classes on; the data set has {classes}"
            )

    def parts(self) -> tuple[Part, ...]:
        return (
            Part("model", share=1 - self.branch_share, teacher_logits=self.alpha > 0, labels_alone=self.alpha == 0),
            Part("branches", share=self.branch_share, learning_rate=self.branch_learning_rate, selects=False),
        )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        if part.name == "branches":
            return Branches(models.student, criterion)
        if self.alpha == 0:
            return Labels(models.student, criterion)
        return TeacherAndLabels(models.student, criterion, self.temperature, self.alpha)


class Branches(Objective):
    """``Σ KL(last head ‖ branch)`` over all branches, at T = 1, while the model itself stands still."""

    def __init__(self, student: PreTrainedModel, criterion: Criterion) -> None:
        from limbeck import exits

        self.module = self.student = student
        self.criterion = criterion
        student.requires_grad_(False)
        exits.attach(student)

    def train_mode(self) -> None:
        """The model stays as it answers: with dropout the branches would learn from states that it never has."""
        self.module.train(False)

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        import torch

        from limbeck import exits

        states: list[Tensor] = []
        with torch.no_grad(), exits.tapped(self.student, lambda _, found: states.append(found)):
            last = self.criterion.logits(self.student(**batch.inputs))
        mask = batch.inputs["attention_mask"]
        branches = getattr(self.student, exits.MODULE)
        return {
            f"layer_{i}_loss": self.criterion.soft(
                branch(found, mask), batch, 1.0, teacher_logits=last, progress=step / steps
            )
            for i, (branch, found) in enumerate(zip(branches, states, strict=True), start=1)
        }
