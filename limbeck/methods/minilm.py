"""MiniLM, version 2: the student learns first how the teacher's tokens relate to each other, then its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.errors import InvalidConfig, Problem
from limbeck.methods.base import Method, Models, Objective, Part, Term
from limbeck.methods.kd import ALPHA, TEMPERATURE, TeacherAndLabels

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.batches import Batch
    from limbeck.capture import Captured
    from limbeck.criterion import Criterion


class MiniLM(Method):
    """KL between the relations of queries, keys and values of one layer each; then as ``kd``."""

    paper: ClassVar[str | None] = (
        "Wang et al. 2021, MiniLMv2: Multi-Head Self-Attention Relation Distillation, arXiv:2012.15828"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"layers", "relations"})
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    looks_inside: ClassVar[bool] = True

    type: Literal["minilm"] = "minilm"
    relation_heads: int | None = Field(default=None, ge=1, le=256)
    """Heads that the relations are computed in; divides the widths of teacher and student. Default: the teacher's own
    where they do, else the most that do."""
    teacher_layer: int | None = Field(default=None, ge=0)
    """The teacher's layer (from 0) that the student's last one learns from; default: the last. The paper takes an
    upper-middle one of a large teacher."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps that go to the relations; the rest go to the answers."""
    temperature: float = Field(default=TEMPERATURE, ge=0.1, le=100)
    """As for ``kd``."""
    alpha: float = Field(default=ALPHA, ge=0, le=1)
    """As for ``kd``."""

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        if self.teacher_layer is not None and self.teacher_layer >= teacher_layers:
            detail = f"found {self.teacher_layer}; the teacher has the layers 0 to {teacher_layers - 1}"
            yield Problem("/method/teacher_layer", detail)

    def parts(self) -> tuple[Part, ...]:
        return (
            Part("relations", share=self.share, selects=False),
            Part("answers", share=1 - self.share, teacher_logits=True),
        )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        if part.name == "relations":
            return Relations(models, self.relation_heads, self.teacher_layer)
        return TeacherAndLabels(models.student, criterion, self.temperature, self.alpha)


class Relations(Objective):
    """Q-Q, K-K and V-V relations of the student's last layer to those of one of the teacher's, each counting alike."""

    def __init__(self, models: Models, heads: int | None, teacher_layer: int | None) -> None:
        self.module = self.student = models.student
        self.teacher = models.teacher()
        for model in (self.student, self.teacher):
            require_relations(model.config.model_type)
        self.layer = self.teacher.config.num_hidden_layers - 1 if teacher_layer is None else teacher_layer
        self.heads = relation_heads(heads, self.student.config, self.teacher.config)

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        ours, theirs = both(self.student, self.teacher, batch, projections=True)
        return {"relation_loss": Term(self.relations(ours, theirs, batch), unit="tokens")}

    def relations(self, ours: Captured, theirs: Captured, batch: Batch) -> Tensor:
        """The mean of the three divergences."""
        import torch

        from limbeck.matching import relation_divergence

        last = self.student.config.num_hidden_layers - 1
        pairs = zip(ours.projections(last), theirs.projections(self.layer), strict=True)
        mask = batch.mask
        return torch.stack([relation_divergence(s, t, mask, self.heads) for s, t in pairs]).mean()


def both(student: object, teacher: object, batch: Batch, *, projections: bool = False) -> tuple[Captured, Captured]:
    """What both models do with a batch; the teacher learns nothing from it."""
    import torch

    from limbeck.capture import captured

    # The base models alone: a head has no part in what is matched.
    with captured(student, projections=projections) as ours:  # type: ignore[arg-type]
        student.base_model(**batch.inputs)  # type: ignore[attr-defined]
    # no_grad, not inference_mode: autograd keeps the teacher's states for the student's gradient.
    with torch.no_grad(), captured(teacher, projections=projections) as theirs:  # type: ignore[arg-type]
        teacher.base_model(**batch.inputs)  # type: ignore[attr-defined]
    return ours, theirs


def require_relations(model_type: str) -> None:
    """
    Raises:
        InvalidConfig: what such a model attends to is not in its projections.
    """
    from limbeck.families import family_of

    if family_of(model_type).rotary:
        detail = (
            f"found a teacher of the type {model_type!r}, which turns queries and keys by their positions after they "
            "are made: their relations are not its attention. Take kd or patient"
        )
        raise InvalidConfig(f"/method: {detail}", [Problem("/method", detail)])


def relation_heads(wanted: int | None, *configs: object) -> int:
    """
    Raises:
        InvalidConfig: ``wanted`` does not divide every width.
    """
    import math

    from limbeck.fewer_heads import attention_width

    widths = [attention_width(config) for config in configs]
    most = math.gcd(*widths)
    if wanted is None:
        own = int(configs[-1].num_attention_heads)  # type: ignore[attr-defined]
        return math.gcd(most, own)
    if most % wanted:
        detail = f"found {wanted}; it has to divide the widths {' and '.join(map(str, dict.fromkeys(widths)))}"
        raise InvalidConfig(f"/method/relation_heads: {detail}", [Problem("/method/relation_heads", detail)])
    return wanted
