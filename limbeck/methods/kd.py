"""Knowledge distillation: the student learns the teacher's softened answers beside the true labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.methods.base import Method, Models, Objective, Part, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.tasks.base import Task


class KnowledgeDistillation(Method):
    """``alpha · T² · KL(teacher ‖ student) + (1 - alpha) · cross-entropy``."""

    paper: ClassVar[str | None] = "Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531"

    type: Literal["kd"] = "kd"
    temperature: float = Field(default=4.0, ge=0.1, le=100)
    """T, which softens both distributions: the higher, the more the teacher's small probabilities count."""
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Weight of the soft loss; the true labels get ``1 - alpha``."""

    def build(self, part: Part, models: Models, task: Task) -> Objective:
        return _TeacherAndLabels(models.student, task, self)


class _TeacherAndLabels(Objective):
    def __init__(self, student: PreTrainedModel, task: Task, options: KnowledgeDistillation) -> None:
        self.module = self.student = student
        self.task = task
        self.options = options

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        if batch.teacher_logits is None:
            raise ValueError("kd needs the teacher's logits in every batch")
        logits = self.student(**batch.inputs).logits
        soft = self.task.soft_loss(logits, batch.teacher_logits, self.options.temperature)
        hard = self.task.hard_loss(logits, batch.labels)
        return {
            "soft_loss": Term(soft, self.options.alpha),
            "hard_loss": Term(hard, 1 - self.options.alpha),
        }
