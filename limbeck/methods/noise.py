"""The control: soft labels that say nothing about their text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.errors import Problem
from limbeck.methods.base import Method, Models, Objective, Part
from limbeck.methods.kd import ALPHA, TEMPERATURE, TeacherAndLabels

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.criterion import Criterion


class NoisyLabels(Method):
    """``kd`` with noise in place of the teacher's answers: a control, which ought not to beat ``none``.

    What ``kd`` gains over this row is what the teacher knows about each text; where this row gains over the baseline
    as well, soft targets as such did it, as label smoothing does. Loss and weights are those of ``kd``. An example
    keeps its noise in every epoch.
    """

    paper: ClassVar[str | None] = (
        "Yuan et al. 2020, Revisiting Knowledge Distillation via Label Smoothing Regularization, arXiv:1909.11723"
    )
    any_tokenizer: ClassVar[bool] = True
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    type: Literal["noise"] = "noise"
    kind: Literal["permuted", "random"] = "permuted"
    """``permuted``: each example gets the teacher's answer to another one, drawn by the seed; together they are as
    before. ``random``: the teacher's answer to the example itself, its classes in a random order; so it is as sure as
    the teacher was, of any class; not of ``question_answering``, whose classes are the places of a text."""
    temperature: float = Field(default=TEMPERATURE, ge=0.1, le=100)
    """T, as in ``kd``."""
    alpha: float = Field(default=ALPHA, ge=0, le=1)
    """Weight of the soft loss, as in ``kd``; the true labels get ``1 - alpha``."""

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        if self.kind == "random" and classes < 2:
            detail = "found 'random', which puts classes in another order; this task has one value only"
            yield Problem("/method/kind", f"{detail}; allowed: permuted")

    def soft_labels(self, logits: Tensor, seed: int) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed(seed)
        if self.kind == "permuted":
            return logits[torch.randperm(len(logits), generator=generator)]
        return logits.gather(-1, torch.rand(logits.shape, generator=generator).argsort(dim=-1))

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return TeacherAndLabels(models.student, criterion, self.temperature, self.alpha)
