"""What ``dynabert`` minimises: every sub-network of one network against a fixed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.elastic import Elastic, Size, distance
from limbeck.methods.base import Objective, Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.criterion import Criterion


class SubNetworks(Objective):
    """The answers and hidden states of every sub-network against a fixed network's. A step's gradient is the sum over
    all of them, whose activations are in memory together: ``training.gradient_accumulation`` needs less."""

    def __init__(
        self,
        student: PreTrainedModel,
        criterion: Criterion,
        elastic: Elastic,
        teacher: Elastic,
        chosen: list[Size],
        temperature: float,
        hidden_weight: float,
    ) -> None:
        self.student, self.criterion, self.elastic, self.teacher = student, criterion, elastic, teacher
        self.module: nn.Module = elastic.network
        self.sizes, self.temperature, self.hidden_weight = chosen, temperature, hidden_weight

    def train_mode(self) -> None:
        self.elastic.network.train()

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
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
                self.temperature,
                teacher_logits=self.criterion.logits(answer),
                progress=step / steps,
            )
            distances.append(distance(states, theirs, size, self.teacher.whole, batch.inputs["attention_mask"]))
        return {**terms, "hidden_loss": Term(torch.stack(distances).sum(), self.hidden_weight, unit="tokens")}

    def asked(self, size: Size) -> Size:
        """Which part of the fixed network teaches a sub-network."""
        return self.teacher.whole


class Deeper(SubNetworks):
    """The second stage: what the first one trained teaches, at the same width and with all of its layers, as in the
    paper (the authors' code leaves it at one width)."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        # Unlike the teacher, it has no folder that it could come from again after an interruption.
        self.module = nn.ModuleDict({"network": self.elastic.network, "widths": self.teacher.network})

    def asked(self, size: Size) -> Size:
        return size._replace(layers=self.teacher.whole.layers)

    def variants(self) -> Mapping[str, PreTrainedModel]:
        return {str(size).replace("_", " "): self.elastic.cut(size) for size in self.sizes}
