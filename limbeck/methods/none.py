"""Fine-tuning without a teacher: how a bare encoder becomes a teacher, and the baseline that distilling has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from limbeck.methods.base import Method, Models, Objective, Part, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.criterion import Criterion


class FineTuning(Method):
    """Learn from the labels alone."""

    uses_teacher: ClassVar[bool] = False
    labels_alone: ClassVar[bool] = True
    any_tokenizer: ClassVar[bool] = True
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    one_teacher: ClassVar[str | None] = "it learns from none"

    type: Literal["none"] = "none"

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return Labels(models.student, criterion)


class Labels(Objective):
    """The hard loss alone."""

    def __init__(self, student: PreTrainedModel, criterion: Criterion) -> None:
        self.module = self.student = student
        self.criterion = criterion

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        logits = self.criterion.answer(self.student, batch)
        return {"hard_loss": self.criterion.hard(logits, batch)}
