"""DynaBERT: one network that is trained at many widths, then at many depths, and the student that is cut out of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from limbeck.methods.base import Method, Models, Objective, Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.config import Student
    from limbeck.criterion import Criterion

_Share = Annotated[float, Field(gt=0, le=1)]
#: Where the student keeps the network that it is a part of, between the two stages; no part of its ``state_dict``.
_KEPT = "_elastic"


class DynaBERT(Method):
    """Train the teacher's own network so that parts of it answer as the whole does: first with fewer heads and neurons,
    taught by the teacher; then with fewer layers as well, taught by the first stage's result at the same width. The
    student is the part that ``student.layers`` and ``student.prune`` (or ``intermediate_size``) name.

    A width is a share of the attention heads and of the feed-forward neurons, of the latter alone in families from
    which single heads cannot be taken.
    """

    paper: ClassVar[str | None] = (
        "Hou et al. 2020, DynaBERT: Dynamic BERT with Adaptive Width and Depth, arXiv:2004.04037"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"elastic"})
    #: Sub-networks are compared by their answers to labels; the vectors of ``embeddings`` are none.
    tasks: ClassVar[frozenset[str] | None] = frozenset(
        {"sequence_classification", "multi_label", "regression", "token_classification", "question_answering"}
    )

    no_labels: ClassVar[str | None] = "the sub-networks"
    one_teacher: ClassVar[str | None] = "the network that is trained at many sizes is its own"

    type: Literal["dynabert"] = "dynabert"
    widths: tuple[_Share, ...] = Field(default=(0.25, 0.5, 0.75, 1.0), min_length=1, max_length=8)
    """Shares of the heads and neurons that are trained, the most important ones each; the student's own numbers of both
    are always among them."""
    depths: tuple[_Share, ...] = Field(default=(0.5, 0.75, 1.0), min_length=1, max_length=8)
    """Shares of the layers that are trained, evenly spread; the student's own layers are always among them."""
    width_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps in which the widths alone are trained; in the rest the depths are, each at every width."""
    temperature: float = Field(default=1.0, ge=0.1, le=100)
    """T of the answers; the paper has 1."""
    hidden_weight: float = Field(default=0.1, ge=0, le=1000)
    """Weight of the hidden states while the widths are trained; the answers have 1. Summed over the layers and the
    embeddings, as in the paper, so that its weights carry over."""
    depth_hidden_weight: float = Field(default=1.0, ge=0, le=1000)
    """The same while the depths are trained."""

    @field_validator("widths", "depths")
    @classmethod
    def _each_once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("name each share once")
        return value

    def student(self, student: Student, teacher_layers: int) -> Student:
        """The layers that the paper's authors keep: every other one, the first among them."""
        return student if student.init else student.model_copy(update={"init": "skip"})

    def remarks(self, *, teacher: str, student: str) -> Iterable[str]:
        from limbeck.families import family_of

        if not family_of(teacher).loses_heads:
            yield (
                f"All attention heads stay: transformers' code of {teacher} has their number from the configuration, "
                "so that none can be taken out. A width is a share of the neurons alone."
            )

    def parts(self) -> tuple[Part, ...]:
        # The second stage asks the first one's network instead of the teacher, and reads no label either.
        return (
            Part("widths", share=self.width_share, teacher_logits=True, selects=False),
            Part("depths", share=1 - self.width_share, teacher_logits=True),
        )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        from limbeck.elastic import Elastic, Size, heads_of, neurons_of, sizes
        from limbeck.sub_networks import Deeper, SubNetworks

        teacher, deep = Elastic(models.teacher()), part.name == "depths"
        elastic: Elastic | None = getattr(models.student, _KEPT, None) if deep else None
        if elastic is None:  # at the beginning, or where a run resumes: the weights come from its checkpoint then
            elastic = teacher.trainable({part: models.importance(part) for part in teacher.inner})
            elastic.lend(models.student, models.layers)
            setattr(models.student, _KEPT, elastic)
        config, heads = models.student.config, "heads" in teacher.inner
        own = Size(models.layers, neurons_of(config), heads_of(config))
        if not deep:
            chosen = sizes(elastic.whole, own, self.widths, None, heads=heads)
            return SubNetworks(
                models.student, criterion, elastic, teacher, chosen, self.temperature, self.hidden_weight
            )
        chosen = sizes(elastic.whole, own, self.widths, self.depths, heads=heads)
        taught = elastic.frozen()
        return Deeper(models.student, criterion, elastic, taught, chosen, self.temperature, self.depth_hidden_weight)

    def finish(self, objective: Objective) -> PreTrainedModel:
        from limbeck.elastic import release

        vars(objective.student).pop(_KEPT, None)
        release(objective.student)
        return objective.student
