"""The answers of several teachers as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.difficulty import entropies

if TYPE_CHECKING:
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
    too, and on the test split the teachers together are the same thing that the student has learned from.
    """

    members: int
    combine: Literal["mean", "confidence"] = "mean"

    def logits(
        self,
        task: Task,
        rows: Tensor,  # (units, members · classes), the members' side by side
        temperature: float = 1.0,
    ) -> Tensor:  # (units, classes), in float32
        """One teacher's logits whose distribution at ``temperature`` T is the weighted mean of the members'.

        That is ``T · log Σ w · softmax(t/T)``, and of yes or no the logit of ``Σ w · σ(t/T)``, times T. It is exact for
        whatever looks at the logits through their softmax at T alone, and means nothing at another temperature. Of
        numbers it is their mean.

        Raises:
            ValueError: the columns are not those of so many members.
        """
        if rows.shape[-1] % self.members:
            raise ValueError(f"{rows.shape[-1]} columns are not the answers of {self.members} teachers")
        answers = rows.float().reshape(len(rows), self.members, -1)
        if task.kind == "value":
            return answers.mean(dim=1)
        shares = self._weights(task, answers).log()[:, :, None]
        scaled = answers / temperature
        if task.kind == "categorical":
            return (F.log_softmax(scaled, dim=-1) + shares).logsumexp(dim=1) * temperature
        yes, no = ((F.logsigmoid(sign * scaled) + shares).logsumexp(dim=1) for sign in (1, -1))
        return (yes - no) * temperature

    def _weights(self, task: Task, answers: Tensor) -> Tensor:
        """(units, members), their sum 1."""
        if self.combine == "mean":
            return answers.new_full(answers.shape[:2], 1 / self.members)
        most = math.log(answers.shape[-1] if task.kind == "categorical" else 2)
        sure = torch.stack([1 - entropies(task, one) / most for one in answers.unbind(dim=1)], dim=1)
        counted = sure.clamp_min(0) + _LEAST
        return counted / counted.sum(dim=1, keepdim=True)
