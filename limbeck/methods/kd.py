"""Knowledge distillation: the student learns the teacher's softened answers beside the true labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.methods.base import Method, Models, Objective, Part, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.criterion import Criterion


#: The seed's own: its loss weighs labels and answers 1 : T². On five of six data sets it is better than T = 4 with nine
#: tenths of the weight on the answers (docs/adr/0013).
TEMPERATURE, ALPHA = 3.0, 0.5


class KnowledgeDistillation(Method):
    """``alpha · T² · KL(teacher ‖ student) + (1 - alpha) · cross-entropy``."""

    paper: ClassVar[str | None] = "Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531"
    any_tokenizer: ClassVar[bool] = True
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    type: Literal["kd"] = "kd"
    temperature: float = Field(default=TEMPERATURE, ge=0.1, le=100)
    """T, which softens both distributions: the higher, the more the teacher's small probabilities count."""
    alpha: float = Field(default=ALPHA, ge=0, le=1)
    """Weight of the soft loss; the true labels get ``1 - alpha``."""

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return TeacherAndLabels(models.student, criterion, self.temperature, self.alpha)


class TeacherAndLabels(Objective):
    """``alpha`` times the soft loss and ``1 - alpha`` times the hard one; other methods end with a part of it."""

    def __init__(self, student: PreTrainedModel, criterion: Criterion, temperature: float, alpha: float) -> None:
        self.module = self.student = student
        self.criterion = criterion
        self.temperature = temperature
        self.alpha = alpha

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        logits = self.criterion.answer(self.student, batch)
        soft = self.criterion.soft(logits, batch, self.temperature, progress=step / steps)
        return {
            "soft_loss": soft.times(self.alpha),
            "hard_loss": self.criterion.hard(logits, batch).times(1 - self.alpha),
        }
