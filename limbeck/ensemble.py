"""The answers of several teachers as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.difficulty import entropies

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch, Encoded
    from limbeck.tasks.base import Task

#: Added to every confidence, so that teachers who are all quite unsure count alike instead of 0 / 0.
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Makes one answer of several teachers' (You et al. 2017, Learning from Multiple Teacher Networks, KDD, whose
    soft target is the mean of the softened distributions).

    By ``confidence`` a teacher's weight on a row is ``1 - entropy / ln classes`` of its answer at temperature 1, over
    the sum of these (weights by entropy: Kwon et al. 2020, Adaptive Knowledge Distillation Based on Entropy, ICASSP).
    No label takes part, unlike in CA-MKD (Zhang et al. 2022, arXiv:2201.00007): so texts without labels have weights
    too, and on the test split the teachers together are the same thing that the student has learned from. Where the
    classes are the tokens of a window, these are counted, and start and end have weights of their own.

    Of vectors it is the mean, brought to length 1 again (Coates & Bollegala 2018, Frustratingly Easy Meta-Embedding,
    arXiv:1804.05262): directions of two models have little to do with each other, so that the cosine of two means is
    near the mean of the members' cosines.
    """

    members: int
    combine: Literal["mean", "confidence"] = "mean"

    def apart(self, answers: Tensor) -> tuple[Tensor, ...]:
        """The members' own answers, (…, classes) each, where they stand side by side, (…, members · classes).

        Raises:
            ValueError: the columns are not those of so many members.
        """
        if answers.shape[-1] % self.members:
            raise ValueError(f"{answers.shape[-1]} columns are not the answers of {self.members} teachers")
        return answers.chunk(self.members, dim=-1)

    def logits(
        self,
        task: Task,
        each: Sequence[Tensor],  # of each member (units, classes), as ``task.rows`` has them
        temperature: float = 1.0,
    ) -> Tensor:  # (units, classes), in float32
        """One teacher's logits whose distribution at ``temperature`` T is the weighted mean of the members'.

        That is ``T · log Σ w · softmax(t/T)``, and of yes or no the logit of ``Σ w · σ(t/T)``, times T. It is exact for
        whatever looks at the logits through their softmax at T alone, and means nothing at another temperature. A row
        is as high as the members' are on average, so that the windows of one text stay comparable. Of numbers it is
        their mean, and of vectors that at length 1.
        """
        answers = torch.stack([one.float() for one in each], dim=1)  # (units, members, classes)
        if task.kind == "value":
            return answers.mean(dim=1)
        if task.kind == "vector":
            return F.normalize(answers.mean(dim=1), dim=-1)
        shares = self._weights(task, answers).log()[:, :, None]
        scaled = answers / temperature
        if task.kind == "categorical":
            height = scaled.logsumexp(dim=-1).mean(dim=1, keepdim=True)  # (units, 1)
            return ((F.log_softmax(scaled, dim=-1) + shares).logsumexp(dim=1) + height) * temperature
        yes, no = ((F.logsigmoid(sign * scaled) + shares).logsumexp(dim=1) for sign in (1, -1))
        return (yes - no) * temperature

    def over(self, task: Task, answers: Tensor, data: Encoded) -> Tensor:
        """The same of answers over the whole of a split at temperature 1, in the form of one model's.

        Args:
            answers: (rows, members · classes); where each token is answered (tokens, members · classes).
        """
        each = self.apart(answers)
        if not task.of_places:
            return self.logits(task, each)
        windows = zip(*(torch.split(one, data.lengths.tolist()) for one in each), strict=True)
        return torch.cat([self.logits(task, [one.T for one in window]).T for window in windows])

    def _weights(self, task: Task, answers: Tensor) -> Tensor:
        """(units, members), their sum 1."""
        if self.combine == "mean":
            return answers.new_full(answers.shape[:2], 1 / self.members)
        most = task.choices(answers[:, 0]).log()  # (units,)
        sure = torch.stack([1 - entropies(task, one) / most for one in answers.unbind(dim=1)], dim=1)
        counted = sure.clamp_min(0) + _LEAST
        return counted / counted.sum(dim=1, keepdim=True)


class Panel(nn.Module):
    """Several teachers whose answers are too wide to be kept, as one model that is asked anew each time.

    Args:
        members: frozen and in ``eval()``; the first is the one that the student starts from.
    """

    def __init__(self, members: Sequence[PreTrainedModel], ensemble: Ensemble) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config: Any = members[0].config
        self._ensemble = ensemble

    def answer(self, task: Task, batch: Batch, temperature: float = 1.0, *, first: Tensor | None = None) -> Tensor:
        """Their logits together for a batch, (units, classes) in float32.

        Args:
            temperature: as for :meth:`Ensemble.logits`.
            first: the first member's logits, where they are known.
        """
        models: list[Any] = list(self.members)
        each = [task.answer(one, batch) for one in (models if first is None else models[1:])]
        rows = [task.rows(one, batch) for one in ([] if first is None else [first]) + each]
        return self._ensemble.logits(task, rows, temperature)
