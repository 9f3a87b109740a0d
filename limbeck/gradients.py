"""A batch's gradient, in one piece or in parts, on one rank or on several: it is the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from limbeck.ranks import sum_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from limbeck.batches import Batch, Collator, Encoded
    from limbeck.methods.base import Objective
    from limbeck.ranks import Ranks
    from limbeck.run import Run


@dataclass(frozen=True, slots=True)
class Cut:
    """How each device cuts its share of a batch."""

    accumulation: int = 1  #: into so many parts
    tokens: int | None = None  #: and into more where one would have more than these, padding included

    def parts(self, data: Encoded, rows: NDArray[np.int64], devices: int) -> int:
        """Into how many parts these rows are cut, those of all devices together."""
        count = self.accumulation * devices
        if self.tokens is None:
            return count
        return count * math.ceil(data.parts_within(rows, self.tokens) / count)


def backward(
    objective: Objective,
    collate: Collator,
    rows: NDArray[np.int64],
    cut: Cut,
    step: int,
    steps: int,
    run: Run,
    weigh: Callable[[list[Batch]], list[Batch]] = lambda parts: parts,
) -> dict[str, Tensor]:
    """Add the gradient of the batch's loss, computed in the parts that ``cut`` makes; return the loss and its terms.

    Each part's mean counts by its share of the batch's units (examples, tokens …): the gradient is that of the batch.
    With several ranks each computes its own parts, and all get the sum.
    """
    parts = weigh(_own_parts(collate, rows, cut, run.ranks))
    whole = collate.counts(rows)
    sums: dict[str, Tensor] = {}
    for part in parts:
        run.say_alive()
        for name, value in add_gradient(objective, part, whole, step, steps, run).items():
            sums[name] = sums[name] + value if name in sums else value
    run.ranks.sum_gradients(trainable(objective.module))
    return sum_values(run.ranks, sums)


def add_gradient(
    objective: Objective, part: Batch, whole: Mapping[str, int], step: int, steps: int, run: Run
) -> dict[str, Tensor]:
    """Add the gradient of one part of a batch that has so many units in the ``whole``; return its share of the loss and
    of the terms."""
    with run.device.autocast():
        terms = objective.losses(part, step, steps)
    counts = dict.fromkeys(whole, 0) if part.stands_in else part.counts
    shares = {name: term.value * (counts[term.unit] / max(1, whole[term.unit])) for name, term in terms.items()}
    loss = torch.stack([shares[name] * term.weight for name, term in terms.items()]).sum()
    if loss.requires_grad:  # not where a draw left out everything that learns (theseus)
        torch.autograd.backward(loss)
    return {name: value.detach() for name, value in {"loss": loss, **shares}.items()}


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer of this module steps."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _own_parts(collate: Collator, rows: NDArray[np.int64], cut: Cut, ranks: Ranks) -> list[Batch]:
    """This rank's parts of a batch; where the batch is too small to give it one, the first stands in.

    It is computed and counts nothing: the rank takes part in every exchange, and finds the same terms.
    """
    parts = collate.data.parts(rows, cut.parts(collate.data, rows, ranks.count))
    own = [collate(part) for part in parts[ranks.number :: ranks.count]]
    return own or [replace(collate(parts[0]), stands_in=True)]
