"""TinyBERT's two stages: first attention and hidden states of every layer, then the answers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.errors import InvalidConfig, Problem
from limbeck.methods.base import Method, Models, Objective, Part, Term, no_deeper
from limbeck.methods.kd import TeacherAndLabels
from limbeck.methods.minilm import both

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.batches import Batch
    from limbeck.capture import Captured
    from limbeck.config import Student
    from limbeck.criterion import Criterion


class TinyBERT(Method):
    """MSE of attention scores and hidden states on a uniform map; then the teacher's answers at T = 1.

    The paper owes much of its figures to twenty and more augmented copies of the data (``training.augmentation``).
    """

    paper: ClassVar[str | None] = (
        "Jiao et al. 2020, TinyBERT: Distilling BERT for Natural Language Understanding, arXiv:1909.10351"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"layers", "scores", "same_heads"})

    looks_inside: ClassVar[bool] = True

    type: Literal["tinybert"] = "tinybert"
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps that go to the inside; the rest go to the answers."""
    inside_learning_rate: float = Field(default=1.0, gt=0, le=100)
    """Factor on the learning rate while the inside is matched; the paper has 5e-5 there and 1e-5 to 3e-5 behind it."""

    def student(self, student: Student, teacher_layers: int) -> Student:
        """Each layer begins as the one whose scores and states it is to have (docs/adr/0013)."""
        return student if student.init else student.model_copy(update={"init": "uniform"})

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        return no_deeper(self.type, teacher_layers=teacher_layers, student_layers=student_layers)

    def parts(self) -> tuple[Part, ...]:
        return (
            Part("inside", share=self.share, learning_rate=self.inside_learning_rate, selects=False),
            Part("answers", share=1 - self.share, teacher_logits=True),
        )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        if part.name == "inside":
            return _Inside(models)
        return TeacherAndLabels(models.student, criterion, temperature=1.0, alpha=1.0)


class HiddenStates(Objective):
    """The student's hidden states, the first layer's input among them, brought near the teacher's by one matrix W."""

    def __init__(self, models: Models) -> None:
        from torch import nn

        from limbeck.matching import uniform_map

        self.student, self.teacher = models.student, models.teacher()
        ours, theirs = (int(model.config.hidden_size) for model in (self.student, self.teacher))
        self.projection = nn.Linear(ours, theirs, bias=False)
        if ours == theirs:
            # A student of the teacher's own layers starts where its states mean the same.
            nn.init.eye_(self.projection.weight)
        self.module = nn.ModuleDict({"student": self.student, "projection": self.projection})
        layers = (int(model.config.num_hidden_layers) for model in (self.student, self.teacher))
        self.map = uniform_map(*layers)

    def distance(self, ours: Captured, theirs: Captured, batch: Batch) -> Tensor:
        """The mean over the layers and the embeddings."""
        import torch

        from limbeck.matching import hidden_distance

        mask = batch.mask
        places = [(0, 0), *((place + 1, layer + 1) for place, layer in enumerate(self.map))]
        found = [hidden_distance(self.projection(ours.hidden(s)), theirs.hidden(t), mask) for s, t in places]
        return torch.stack(found).mean()

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        ours, theirs = both(self.student, self.teacher, batch)
        return {"hidden_loss": Term(self.distance(ours, theirs, batch), unit="tokens")}


class _Inside(HiddenStates):
    def __init__(self, models: Models) -> None:
        super().__init__(models)
        self.heads = _heads(self.student.config, self.teacher.config)

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        import torch

        from limbeck.matching import attention_distance

        ours, theirs = both(self.student, self.teacher, batch, projections=True)
        found = [
            attention_distance(ours.projections(place)[:2], theirs.projections(layer)[:2], batch.mask, self.heads)
            for place, layer in enumerate(self.map)
        ]
        return {
            "attention_loss": Term(torch.stack(found).mean(), unit="pairs"),
            "hidden_loss": Term(self.distance(ours, theirs, batch), unit="tokens"),
        }


def _heads(student: object, teacher: object) -> int:
    """
    Raises:
        InvalidConfig: the scores of the two cannot be compared.
    """
    from limbeck.families import family_of

    kinds = [str(config.model_type) for config in (student, teacher)]  # type: ignore[attr-defined]
    other = next((kind for kind in kinds if not family_of(kind).fused_export), None)
    ours, theirs = (int(config.num_attention_heads) for config in (student, teacher))  # type: ignore[attr-defined]
    detail = None
    if other is not None:
        detail = (
            f"found a model of the type {other!r}, whose attention is more than the product of queries and keys: "
            "take minilm or patient"
        )
    elif ours != theirs:
        detail = (
            f"found a student of {ours} attention heads and a teacher of {theirs}: give both as many, or take minilm"
        )
    if detail is not None:
        raise InvalidConfig(f"/method: {detail}", [Problem("/method", detail)])
    return theirs
