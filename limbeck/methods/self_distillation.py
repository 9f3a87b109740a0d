"""Self-distillation: a student of the teacher's own size learns the teacher's answers from the start that it had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.errors import Problem
from limbeck.methods.base import Method, Models, Objective, Part
from limbeck.methods.kd import ALPHA, TEMPERATURE, TeacherAndLabels

if TYPE_CHECKING:
    from limbeck.config import Student
    from limbeck.criterion import Criterion


class SelfDistillation(Method):
    """``kd`` from a teacher to a student of the same size: nothing gets smaller or faster, it may get better.

    A copy of the teacher would have nothing to learn from it (the soft loss is 0), so the student starts from the
    encoder as it was *before* this job fine-tuned it, with a new head. So does the baseline: the two differ by the soft
    labels alone. For that, give a bare encoder as the teacher. One that came fine-tuned has no such start; the student
    then takes its encoder, which has seen the labels already, with a new, random head, and less is to be expected.
    """

    paper: ClassVar[str | None] = "Furlanello et al. 2018, Born-Again Neural Networks, arXiv:1805.04770"
    before_finetuning: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"teacher_layers"})
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    type: Literal["self"] = "self"
    temperature: float = Field(default=TEMPERATURE, ge=0.1, le=100)
    """T, which softens both distributions, as in ``kd``."""
    alpha: float = Field(default=ALPHA, ge=0, le=1)
    """Weight of the soft loss, as in ``kd``; the true labels get ``1 - alpha``."""

    def student(self, student: Student, teacher_layers: int) -> Student:
        return student if student.layers is not None else student.model_copy(update={"layers": teacher_layers})

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        if student_layers < teacher_layers:
            yield Problem(
                "/student/layers",
                f"found {student_layers} of the teacher's {teacher_layers}; with the method self the student is as "
                f"large as its teacher: leave it out, or take kd for a smaller one; allowed: {teacher_layers}",
            )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return TeacherAndLabels(models.student, criterion, self.temperature, self.alpha)
