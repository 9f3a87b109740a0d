"""Limbeck's side: a distillation by the engine's public interface, watched by its callbacks.

Orders come as JSON, one a line (``benchmarks/peers/forking.py``): ``config`` (a job) and ``held`` (token files that the
finished student answers).
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.forking import peak_bytes, serve
from limbeck.callbacks import Callbacks, Stage
from limbeck.config import DistillConfig
from limbeck.engine import distill


class Watch(Callbacks):
    """When each step of the student's training ended, its loss, and what came before."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.marks: list[float] = []
        self.steps: list[int] = []  #: of the whole job, that the marks are of
        self.losses: list[float] = []
        self.prepared: float | None = None
        self.cache: dict[str, Any] | None = None
        self.peak: int | None = None

    def on_stage(self, stage: Stage) -> None:
        if stage is Stage.TEACHER and self.prepared is None:
            self.prepared = time.perf_counter()
        if stage is Stage.EVALUATING and self.peak is None:
            self.peak = peak_bytes()

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        if kind == "cache.built":
            self.cache = dict(data)

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        if "distilling/loss" in values:
            self.marks.append(time.perf_counter())
            self.steps.append(step)
            self.losses.append(values["distilling/loss"])


def train(order: dict[str, Any]) -> dict[str, Any]:
    """Do an order; what was measured. Marks are of the ends of steps: the first step has no beginning."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        result = distill(DistillConfig.parse(order["config"]), Path(folder), callbacks=watch)
        held = {name: _answers(result.student, Path(path)) for name, path in order["held"].items()}
    assert watch.prepared is not None
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "losses": watch.losses,
        "marks": watch.marks,
        "steps": watch.steps,
        "prepare_seconds": watch.prepared - watch.began,
        "cache": watch.cache,
        "peak_bytes": watch.peak,
        "cuda_peak_bytes": cuda,
        "epochs": [held],
    }


@torch.inference_mode()
def _answers(student: Path, path: Path) -> list[list[float]]:
    """What the student's folder answers in plain transformers, one text at a time: nothing of ours in between."""
    import numpy as np
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(student).train(False)
    with np.load(path) as data:
        ids, segments, starts = (data[name] for name in ("ids", "segments", "starts"))
    found = []
    for start, end in itertools.pairwise(starts):
        texts = {"input_ids": ids[start:end], "token_type_ids": segments[start:end]}
        tensors = {name: torch.from_numpy(one.astype(np.int64))[None] for name, one in texts.items()}
        found.append([round(float(value), 5) for value in model(**tensors).logits[0]])
    return found


if __name__ == "__main__":
    serve(train)
