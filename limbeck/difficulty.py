"""How hard examples are: what weightings, and the table of hard samples, are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.batches import Batch, Collator, forward_batches

if TYPE_CHECKING:
    from limbeck.tasks.base import Task
    from limbeck.weighting import SampleWeighting


def entropies(task: Task, logits: Tensor) -> Tensor:
    """The entropy of each row's answer in nats, (units,) in float32; of several yes or no their mean.

    Args:
        logits: (units, classes)

    Raises:
        ValueError: the task answers with numbers, which have no entropy.
    """
    if task.kind == "value":
        raise ValueError(f"an answer of {task.type!r} is a number and has no entropy")
    values = logits.float()
    if task.kind == "categorical":
        return -(values.softmax(dim=-1) * values.log_softmax(dim=-1)).sum(dim=-1)
    yes, no = values.sigmoid() * F.logsigmoid(values), (-values).sigmoid() * F.logsigmoid(-values)
    return -(yes + no).mean(dim=-1)


def right_rows(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each row's answer is the true one, (units,) of bool; of several yes or no, whether all are.

    Raises:
        ValueError: the task answers with numbers, which are never quite right.
    """
    if task.kind == "value":
        raise ValueError(f"an answer of {task.type!r} is a number and neither right nor wrong")
    if task.kind == "categorical":
        return logits.argmax(dim=-1) == targets
    return ((logits > 0) == (targets > 0.5)).all(dim=-1)


def example_means(values: Tensor, owners: Tensor, examples: int) -> Tensor:
    """Of each row's value the mean over the rows of an example, (examples,); 0 where an example has no row.

    Args:
        values: (units,)
        owners: (units,), the example that each row belongs to.
    """
    sums = values.new_zeros(examples).index_add_(0, owners, values)
    counts = values.new_zeros(examples).index_add_(0, owners, torch.ones_like(values))
    return sums / counts.clamp_min(1)


def ranks(weighting: SampleWeighting, task: Task, collate: Collator, teacher_rows: Callable[[Batch], Tensor]) -> Tensor:
    """The place of each training example among all by the teacher's difficulty with it, from 0 (easiest) to 1, on the
    CPU.

    Args:
        collate: of the training split, with the teacher's logits.
        teacher_rows: the teacher's answer in a batch, (units, classes).
    """
    found = torch.empty(len(collate.data))
    for rows in forward_batches(collate.data.lengths):
        batch = collate(rows)
        values = weighting.difficulties(task, None, teacher_rows(batch), task.targets(batch))
        found[torch.from_numpy(rows)] = example_means(values, task.owners(batch), len(rows)).cpu()
    # Equal difficulties get their places in the order of the rows, which is as good as any and always the same.
    order = torch.argsort(found, stable=True)
    places = torch.empty_like(found)
    places[order] = torch.linspace(0, 1, len(found))
    return places
