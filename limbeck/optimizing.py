"""The optimizer of every training, its steps, and the learning rate over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limbeck.gradients import trainable
from limbeck.methods.base import Objective
from limbeck.phase import Phase, Position
from limbeck.recurrent import MODEL_TYPE as RECURRENT
from limbeck.students import has_words

#: Gradients longer than this are scaled down to it (BERT's own setting).
_GRADIENT_NORM = 1.0


def adamw(objective: Objective, phase: Phase, position: Position) -> torch.optim.AdamW:
    """Biases and norms do not decay, as usual, and the embedding table does not either: rows that the data never uses
    would shrink, and could then not be left out of the step (``limbeck/vocabulary.py``).

    AdamW's steps are as long whatever a gradient's length, so that a head which answers with numbers would stand still
    beside prices and be all noise beside shares. It steps as one that answers in units of the labels' spread does:
    gradient and learning rate times the spread, decay divided by it.
    """
    learned, student = trainable(objective.module), objective.student
    table = student.get_input_embeddings().weight if has_words(student) else None
    spread = math.sqrt(phase.task.loss_unit(phase.labels)) if position.scaled else 1.0
    head = _head(objective, phase) if spread != 1 else []
    of_head = {id(p) for p in head}
    rest = [p for p in learned if id(p) not in of_head]
    groups = []
    for parameters, unit in ((rest, 1.0), (head, spread)):
        free = [p for p in parameters if p.dim() < 2 or p is table]
        decaying = [p for p in parameters if p.dim() >= 2 and p is not table]
        groups += [
            {"params": decaying, "weight_decay": phase.weight_decay / unit, "spread": unit},
            {"params": free, "weight_decay": 0.0, "spread": unit},
        ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def _head(objective: Objective, phase: Phase) -> list[nn.Parameter]:
    """Of what learns, weight and bias of the last linear layer, wherever the student is inside of the module."""
    kind = objective.student.config.model_type
    layer = "classifier" if kind == RECURRENT else phase.task.output_layer(kind)
    ends = tuple(f".{layer}.{name}" for name in ("weight", "bias"))
    named = objective.module.named_parameters()
    return [p for name, p in named if p.requires_grad and f".{name}".endswith(ends)]


def update(objective: Objective, optimizer: torch.optim.Optimizer, rate: float) -> Tensor:
    """One optimizer step along the gradient that has been added up; its norm before it was clipped."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["spread"]
        if group["spread"] != 1:
            for parameter in group["params"]:
                if parameter.grad is not None:  # of a part that matches what is inside there is none
                    parameter.grad.mul_(group["spread"])
    norm = nn.utils.clip_grad_norm_(trainable(objective.module), _GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """The learning rate's factor: from 0 up to 1 over the warm-up, then in a line down to 0 at ``steps``."""
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / (steps - warmup)
