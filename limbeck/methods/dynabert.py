"""DynaBERT: one network that is trained at many widths, then at many depths, and the student that is cut out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from limbeck.methods.base import Method, Models, Objective, Part, Term

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.capture import Captured
    from limbeck.config import Student
    from limbeck.criterion import Criterion
    from limbeck.elastic import Elastic, Size

_Share = Annotated[float, Field(gt=0, le=1)]
#: Where the student keeps the network that it is a part of, between the two stages; no part of its ``state_dict``.
_KEPT = "_elastic"


class DynaBERT(Method):
    """Train the teacher's own network so that parts of it answer as the whole does: first with fewer neurons, taught by
    the teacher; then with fewer layers as well, taught by the first stage's result at the same width. The student is
    the part that ``student.layers`` and ``student.prune`` (or ``intermediate_size``) name.

    A width is a share of the feed-forward neurons. The attention heads, elastic in the paper, all stay: in transformers
    a head is ``hidden_size / heads`` wide, so that a student without some of them could not be loaded.
    """

    paper: ClassVar[str | None] = (
        "Hou et al. 2020, DynaBERT: Dynamic BERT with Adaptive Width and Depth, arXiv:2004.04037"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"elastic"})

    type: Literal["dynabert"] = "dynabert"
    widths: tuple[_Share, ...] = Field(default=(0.25, 0.5, 0.75, 1.0), min_length=1, max_length=8)
    """Shares of the neurons that are trained, the most important ones each; the student's own is always among them."""
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

    def parts(self) -> tuple[Part, ...]:
        # The second stage asks the first one's network instead of the teacher, and reads no label either.
        return (
            Part("widths", share=self.width_share, teacher_logits=True, selects=False),
            Part("depths", share=1 - self.width_share, teacher_logits=True),
        )

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        from limbeck.elastic import Elastic

        elastic: Elastic | None = getattr(models.student, _KEPT, None) if part.name == "depths" else None
        if elastic is None:  # at the beginning, or where a run resumes: the weights come from its checkpoint then
            elastic = Elastic(models.teacher().requires_grad_(True), models.importance())
            elastic.lend(models.student, models.layers)
            setattr(models.student, _KEPT, elastic)
        if part.name == "widths":
            return SubNetworks(self, models, criterion, elastic, Elastic(models.teacher()))
        return SubNetworks(self, models, criterion, elastic, elastic.frozen(), deep=True)

    def finish(self, objective: Objective) -> PreTrainedModel:
        from limbeck.elastic import release

        vars(objective.student).pop(_KEPT, None)
        release(objective.student)
        return objective.student


class SubNetworks(Objective):
    """The answers and hidden states of every sub-network against a fixed network's. A step's gradient is the sum over
    all of them, whose activations are in memory together: ``training.gradient_accumulation`` needs less."""

    def __init__(
        self,
        method: DynaBERT,
        models: Models,
        criterion: Criterion,
        elastic: Elastic,
        teacher: Elastic,
        *,
        deep: bool = False,
    ) -> None:
        from torch import nn

        self.student, self.method, self.criterion = models.student, method, criterion
        self.elastic, self.teacher, self.deep = elastic, teacher, deep
        self.sizes = sizes(method, models, elastic, deep=deep)
        # The teacher comes from its folder again after an interruption; the first stage's result has no folder.
        parts = {"network": elastic.network, **({"widths": teacher.network} if deep else {})}
        self.module = nn.ModuleDict(parts)

    def train_mode(self) -> None:
        self.elastic.network.train()

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        import torch

        terms, taught, distances = {}, {}, []
        for size in self.sizes:
            asked = self.asked(size)
            if asked not in taught:
                with torch.no_grad():
                    taught[asked] = self.teacher.run(batch.inputs, asked)
            output, states = self.elastic.run(batch.inputs, size)
            (answer, theirs), logits = taught[asked], self.criterion.logits(output)
            terms[f"{size}_loss"] = self.criterion.soft(
                logits,
                batch,
                self.method.temperature,
                teacher_logits=self.criterion.logits(answer),
                progress=step / steps,
            )
            distances.append(self.distance(states, theirs, size, batch))
        weight = self.method.depth_hidden_weight if self.deep else self.method.hidden_weight
        return {**terms, "hidden_loss": Term(torch.stack(distances).sum(), weight, unit="tokens")}

    def asked(self, size: Size) -> Size:
        """Which part of the fixed network teaches a sub-network: all of its layers, at the same width where it has
        learned to be narrow."""
        return self.teacher.whole._replace(neurons=size.neurons) if self.deep else self.teacher.whole

    def distance(self, ours: Captured, theirs: Captured, size: Size, batch: Batch) -> Tensor:
        """Summed over the embeddings and the layers. What a layer reads is held against what the same layer reads in
        the whole network: the layer before does the work of those that are left out in between."""
        import torch

        from limbeck.matching import hidden_distance

        last = len(self.teacher.whole.layers)
        mask, map_ = batch.inputs["attention_mask"], (0, *size.layers[1:], last)
        found = [hidden_distance(ours.hidden(s), theirs.hidden(t), mask) for s, t in enumerate(map_)]
        return torch.stack(found).sum()

    def variants(self) -> Mapping[str, PreTrainedModel]:
        return {str(size).replace("_", " "): self.elastic.cut(size) for size in self.sizes} if self.deep else {}


def sizes(method: DynaBERT, models: Models, elastic: Elastic, *, deep: bool) -> list[Size]:
    """The sub-networks of a stage, the largest first."""
    from limbeck.elastic import Size, evenly, neurons_of

    whole = elastic.whole
    neurons = {max(1, round(share * whole.neurons)) for share in method.widths} | {neurons_of(models.student.config)}
    layers = {len(whole.layers): whole.layers}
    if deep:
        counts = [max(1, round(share * len(whole.layers))) for share in method.depths]
        layers = {count: evenly(count, len(whole.layers)) for count in counts}
        layers[len(models.layers)] = models.layers
    return [Size(layers[count], width) for count in sorted(layers, reverse=True) for width in sorted(neurons)[::-1]]
