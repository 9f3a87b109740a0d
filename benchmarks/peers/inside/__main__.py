"""Train a student by another trainer than Limbeck: one JSON order a line on stdin (``benchmarks/peers/forking.py``).

Runs in the peers' environment, which knows no Limbeck. All trainers get the same teacher, start, token ids, batch size,
epochs, schedule, decay, clipping and losses; what differs is what they do with them.

What an order holds: ``benchmarks/peers/order.py``.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # forking.py; behind the standard library

import torch
from forking import peak_bytes, serve
from tokens import Tokens, answers, loader

from models import Recorder, optimizer_of, schedule_of, student_and_teacher


def train(order: dict[str, Any]) -> dict[str, Any]:
    """Do an order; what was measured."""
    random.seed(order["seed"])
    torch.manual_seed(order["seed"])
    device = torch.device(order["device"])
    student, teacher = student_and_teacher(order, device)
    data = Tokens.read(order["train"])
    batches = loader(data, order, student.config.pad_token_id or 0)
    optimizer = optimizer_of(student, order)
    steps = len(batches) * order["epochs"]
    recorder = Recorder(optimizer, steps, device)
    schedule = schedule_of(optimizer, steps, order["warmup_ratio"])
    held = {name: Tokens.read(path) for name, path in order["held"].items()}
    epochs: list[dict[str, Any]] = []

    def epoch_ended() -> None:
        if order["every_epoch"] or len(recorder.marks) > steps:
            pad = student.config.pad_token_id or 0
            epochs.append({name: answers(student, one, pad, device) for name, one in held.items()})

    # Only what this order needs: the other's memory would count.
    module = importlib.import_module("by_trainer" if order["trainer"] == "trainer" else "by_textbrewer")
    facts = module.train(order, student, teacher, batches, optimizer, schedule, recorder, epoch_ended)
    peak = peak_bytes()
    if order.get("entropy"):
        facts["entropy"] = softened_entropy(teacher, data, order, device)
    return {
        "losses": recorder.losses,
        "marks": recorder.marks,
        "peak_bytes": peak,
        "cuda_peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "epochs": epochs,
        **facts,
    }


@torch.inference_mode()
def softened_entropy(teacher: Any, data: Tokens, order: dict[str, Any], device: torch.device) -> float:
    """Of the teacher's softened answers, the mean over all examples: what a cross-entropy has over a divergence."""
    logits = torch.tensor(answers(teacher, data, teacher.config.pad_token_id or 0, device))
    return float(torch.distributions.Categorical(logits=logits / order["temperature"]).entropy().mean())


if __name__ == "__main__":
    serve(train)
