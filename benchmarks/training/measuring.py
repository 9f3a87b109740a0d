"""Seconds for an example, by a short training, and what follows from them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.order import Training
from benchmarks.training.files import Files
from benchmarks.training.systems import SYSTEMS, System, Workers
from benchmarks.training.workloads import WORKLOADS, Workload
from limbeck.progress import TRAINING, forward_work

#: Epochs that the teacher's pass is spread over in the figures that count it.
EPOCHS = 3
#: Marks that lie closer were reported together: the last of them says when.
_TOGETHER = 1e-3


@dataclass(frozen=True)
class Cell:
    """One system on one workload, over so many batches."""

    workload: str
    system: str
    batches: int

    @property
    def name(self) -> str:
        return f"{self.workload}/{self.system}"


#: Few for those that take long: what is measured is the time of a step, and that hardly differs between steps.
CELLS: Sequence[Cell] = tuple(
    Cell(workload, system, batches)
    for workload, systems in {
        "sst2": {
            "limbeck": 64,
            "trainer": 9,
            "textbrewer": 9,
            "textbrewer-fused": 9,
            "textbrewer-padded": 3,
            "textbrewer-cached": 9,
        },
        "mrpc": {"limbeck": 12, "trainer": 4, "textbrewer": 4, "textbrewer-cached": 4},
        "hidden": {"limbeck": 32, "trainer": 9, "textbrewer": 9},
        "base": {"limbeck": 7, "trainer": 3, "textbrewer": 3},
    }.items()
    for system, batches in systems.items()
)


def measure(files: Files, workers: Workers, cell: Cell, number: int, device: str = "cpu") -> dict[str, Any]:
    """One round of a cell; every round draws other examples, the same for every system with as many batches."""
    workload, system = WORKLOADS[cell.workload], SYSTEMS[cell.system]
    training = Training(epochs=1, seed=number)
    part = files.part(workload, cell.batches * training.batch_size, draw=number)
    teacher = files.teacher(workload)
    found = workers.ask(system, workload, teacher, part, training, device=device)
    step, passed = step_seconds(system, found, training.batch_size), pass_seconds(system, found, len(part.lengths))
    return {
        "step_seconds": step,
        "pass_seconds": passed,
        "work": useful_work(workload, system, teacher, part.lengths),
        "tokens": float(part.lengths.mean()),
        "peak_bytes": found["peak_bytes"],
        "cuda_peak_bytes": found["cuda_peak_bytes"],
    }


def step_seconds(system: System, found: dict[str, Any], batch_size: int) -> float:
    """Of training, for an example; the first step, in which memory is got and Adam's state made, is left out."""
    marks = np.asarray(found["marks"])
    # Limbeck's marks are the ends of steps, with their numbers; a peer's begin with the beginning.
    steps = np.asarray(found.get("steps", np.arange(len(marks))))
    last = np.append(np.diff(marks) > _TOGETHER, True)
    marks, steps = marks[last], steps[last]
    first = 0 if system.trainer is None else 1
    if len(marks) < first + 2:
        raise ValueError(f"{system.name} reported the ends of too few steps to time one: {found['marks']}")
    return float((marks[-1] - marks[first]) / (steps[-1] - steps[first]) / batch_size)


def pass_seconds(system: System, found: dict[str, Any], examples: int) -> float:
    """Of the pass in which the teacher answers every example, for an example; 0 where it is asked in every step."""
    if system.trainer is not None:
        return float(found.get("pass_seconds", 0.0)) / examples
    cache = found["cache"]
    if cache is None or cache["misses"] != examples:
        raise ValueError(f"Limbeck's teacher was to answer {examples} examples anew; it says {cache}")
    return float(cache["seconds"]) / examples


def useful_work(workload: Workload, system: System, teacher: Path, lengths: NDArray[np.int64]) -> dict[str, float]:
    """Floating-point operations for an example, padding not counted: of a step, and of the teacher's pass.

    Where Limbeck wants nothing but logits its last layer answers from the first token alone, of student and teacher:
    what it leaves out is not counted.
    """
    config: Any = SimpleNamespace(**json.loads((teacher / "config.json").read_text()))
    taught = forward_work(config, config.num_hidden_layers, lengths) / len(lengths)
    student = forward_work(config, len(workload.layers), lengths) / len(lengths)
    left_out = work_left_out(config, lengths) / len(lengths) if system.trainer is None else 0.0
    asked = 0.0 if system.cached else taught
    return {"step": TRAINING * (student - left_out) + asked, "pass": taught - left_out if system.cached else 0.0}


def work_left_out(config: Any, lengths: NDArray[np.int64]) -> float:
    """What ``limbeck/first_token.py`` saves of a forward pass: the last layer has keys and values of all tokens, and
    query, attention, output and feed-forward of one."""
    width, inner, tokens = config.hidden_size, config.intermediate_size, float(lengths.sum())
    keys_and_values = 2.0 * 2 * width * width * tokens
    first = 2.0 * (2 * width * width + 2 * width * inner) * len(lengths)
    return forward_work(config, 1, lengths) - (keys_and_values + first + 4.0 * width * tokens)


def summary(rounds: Sequence[dict[str, Any]], sgemm: float) -> dict[str, Any]:
    """Medians over the rounds: examples per second, with and without the pass, and the share of sgemm."""
    step = median(one["step_seconds"] for one in rounds)
    whole = median(one["step_seconds"] + one["pass_seconds"] / EPOCHS for one in rounds)
    work = median(one["work"]["step"] for one in rounds)
    return {
        "examples_per_second": 1 / step,
        "examples_per_second_with_pass": 1 / whole,
        "spread": [1 / max(one["step_seconds"] for one in rounds), 1 / min(one["step_seconds"] for one in rounds)],
        "useful_flops": work / step,
        "share_of_sgemm": work / step / sgemm,
        "tokens": median(one["tokens"] for one in rounds),
        "peak_bytes": max(one["peak_bytes"] for one in rounds),
        "cuda_peak_bytes": max(one["cuda_peak_bytes"] or 0 for one in rounds) or None,
        "rounds": list(rounds),
    }


def gemm_rate(device: str = "cpu", size: int = 1536, repeats: int = 8) -> float:
    """Operations per second of a dense product, float32 on a CPU and bfloat16 on a card."""
    import torch

    kind = torch.float32 if device == "cpu" else torch.bfloat16
    size, repeats = (size, repeats) if device == "cpu" else (8192, 50)
    one, other = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    one @ other
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        one @ other
    if device != "cpu":
        torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - began)
