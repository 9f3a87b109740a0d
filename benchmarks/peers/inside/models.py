"""Teacher, student's start, optimizer and schedule: what all trainers share."""

from __future__ import annotations

import math
import re
import sys
import time
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

_LAYER = re.compile(r"(.*\.layer\.)(\d+)(\..*)")


def student_and_teacher(order: dict[str, Any], device: torch.device) -> tuple[Any, Any]:
    """The student begins as the teacher's layers that the order names, with its embeddings and its head."""
    folder, layers = order["teacher"], order["layers"]
    teacher = AutoModelForSequenceClassification.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = len(layers)
    student = AutoModelForSequenceClassification.from_config(config)
    places = {str(layer): str(place) for place, layer in enumerate(layers)}
    weights = {}
    for name, value in teacher.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            weights[name] = value.clone()
        elif found[2] in places:
            weights[f"{found[1]}{places[found[2]]}{found[3]}"] = value.clone()
    student.load_state_dict(weights)
    return student.to(device), teacher.eval().requires_grad_(False).to(device)


def optimizer_of(student: nn.Module, order: dict[str, Any]) -> torch.optim.AdamW:
    """AdamW over the groups that Limbeck has: biases, norms and the word table do not decay."""
    table = student.get_input_embeddings().weight
    decaying = [one for one in student.parameters() if one.dim() >= 2 and one is not table]
    free = [one for one in student.parameters() if one.dim() < 2 or one is table]
    groups = [{"params": decaying, "weight_decay": order["weight_decay"]}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=order["learning_rate"], fused=order["fused"])


def schedule_of(optimizer: torch.optim.Optimizer, steps: int, warmup_ratio: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Limbeck's: up in a line over the warm-up, then down in a line to 0."""
    warmup = math.ceil(steps * warmup_ratio)

    def factor(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else max(0, steps - step) / (steps - warmup)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Recorder:
    """When each step ended, and its loss; says how far a long training is."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, device: torch.device) -> None:
        self.marks: list[float] = []
        self.losses: list[float] = []
        self._steps, self._device = steps, device
        optimizer.register_step_post_hook(lambda *_: self._stepped())

    def _stepped(self) -> None:
        # A card's queue is waited for where the time between two marks is taken, and nowhere else.
        if self._device.type == "cuda" and len(self.marks) in (1, self._steps):
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        done = len(self.marks) - 1
        if done % 50 == 0:
            print(f"  step {done} of {self._steps}", file=sys.stderr, flush=True)

    def begin(self) -> None:
        """The training starts now."""
        self.marks.append(time.perf_counter())

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """As TensorBoard's writer has it, which is how TextBrewer tells its losses."""
        if name == "scalar/total_loss":
            self.losses.append(float(value))
