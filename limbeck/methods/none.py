"""Fine-tuning without a teacher: how a bare encoder becomes a teacher, and the baseline that distilling has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from limbeck.methods.base import Method, Models, Objective, Part, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.tasks.base import Task


class FineTuning(Method):
    """Learn from the labels alone."""

    uses_teacher: ClassVar[bool] = False

    type: Literal["none"] = "none"

    def build(self, part: Part, models: Models, task: Task) -> Objective:
        return _Labels(models.student, task)


class _Labels(Objective):
    def __init__(self, student: PreTrainedModel, task: Task) -> None:
        self.module = self.student = student
        self.task = task

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        logits = self.student(**batch.inputs).logits
        return {"hard_loss": Term(self.task.hard_loss(logits, batch.labels))}
