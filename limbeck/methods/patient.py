"""Patient knowledge distillation: beside the teacher's answers, what its first token knows on the way to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.errors import InvalidConfig, Problem
from limbeck.methods.base import Method, Models, Objective, Part, Term, no_deeper
from limbeck.methods.kd import ALPHA, TEMPERATURE, TeacherAndLabels

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.batches import Batch
    from limbeck.criterion import Criterion


class Patient(Method):
    """``kd``, and ``beta`` times the distance of the normalised states of the first token, layer by layer.

    The last layer is left out, as its states are what the answers are made of.
    """

    paper: ClassVar[str | None] = (
        "Sun et al. 2019, Patient Knowledge Distillation for BERT Model Compression, arXiv:1908.09355"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"layers", "same_width"})
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    looks_inside: ClassVar[bool] = True

    type: Literal["patient"] = "patient"
    temperature: float = Field(default=TEMPERATURE, ge=0.1, le=100)
    """As for ``kd``."""
    alpha: float = Field(default=ALPHA, ge=0, le=1)
    """As for ``kd``."""
    beta: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the states. The distance is summed over the width: the paper's 10 to 1000, whose loss is divided by
    it, mean 0.01 to 1.3 here at 768."""
    layer_map: Literal["skip", "last"] | tuple[int, ...] = "skip"
    """The teacher's layers that the student's layers but the last learn from: ``skip`` every n-th (2, 4, 6, 8, 10 of 12
    for 6), ``last`` those before the last one (7 to 11), or a list of layers from 0."""

    def problems(self, *, classes: int, teacher_layers: int, student_layers: int) -> Iterable[Problem]:
        if student_layers < 2:
            yield Problem("/method", "found 'patient' for a student of 1 layer: all but the last learn; take kd")
        if not isinstance(self.layer_map, tuple):
            yield from no_deeper(self.type, teacher_layers=teacher_layers, student_layers=student_layers)
        else:
            wanted = student_layers - 1
            if len(self.layer_map) != wanted or not all(0 <= layer < teacher_layers for layer in self.layer_map):
                yield Problem(
                    "/method/layer_map",
                    f"found {list(self.layer_map)}; for this student it has {wanted} of the layers 0 to "
                    f"{teacher_layers - 1}",
                )

    def teacher_places(self, student_layers: int, teacher_layers: int) -> tuple[int, ...]:
        """How many of the teacher's layers lie before each state that is matched."""
        if isinstance(self.layer_map, tuple):
            return tuple(layer + 1 for layer in self.layer_map)
        matched = range(1, student_layers)
        if self.layer_map == "skip":
            return tuple(place * teacher_layers // student_layers for place in matched)
        return tuple(teacher_layers - student_layers + place for place in matched)

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return _FirstTokens(models, criterion, self)


class _FirstTokens(TeacherAndLabels):
    def __init__(self, models: Models, criterion: Criterion, options: Patient) -> None:
        super().__init__(models.student, criterion, options.temperature, options.alpha)
        self.beta = options.beta
        self.asked = None if models.states_kept else _Asked(models, options)

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        import torch

        from limbeck.capture import captured
        from limbeck.matching import normalised_distance

        with captured(self.student) as ours:
            terms = dict(super().losses(batch, step, steps))
        theirs = batch.teacher_states if self.asked is None else self.asked.states(batch)
        assert theirs is not None
        found = [
            normalised_distance(ours.hidden(place)[:, 0], known)
            for place, known in enumerate(theirs.unbind(1), start=1)
        ]
        return terms | {"state_loss": Term(torch.stack(found).mean(), self.beta)}


class _Asked:
    """The teacher, where its states are not kept."""

    def __init__(self, models: Models, options: Patient) -> None:
        self.teacher = models.teacher()
        ours, theirs = models.student.config, self.teacher.config
        require_same_width(int(ours.hidden_size), int(theirs.hidden_size))
        self.places = options.teacher_places(int(ours.num_hidden_layers), int(theirs.num_hidden_layers))

    def states(self, batch: Batch) -> Tensor:  # (examples, places, width)
        import torch

        from limbeck.capture import captured

        with torch.no_grad(), captured(self.teacher) as found:
            self.teacher.base_model(**batch.inputs)
        return found.first_token(self.places)


def require_same_width(student: int, teacher: int) -> None:
    """
    Raises:
        InvalidConfig: the states of the two cannot be compared one by one.
    """
    if student != teacher:
        detail = (
            f"found a student of width {student} and a teacher of {teacher}, whose states cannot be compared: take "
            "tinybert, which learns a projection, or minilm"
        )
        raise InvalidConfig(f"/method: {detail}", [Problem("/method", detail)])
