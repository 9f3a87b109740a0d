"""Whether Limbeck's time grows in a line with the examples, and with their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.order import Training
from benchmarks.training.files import Files
from benchmarks.training.measuring import pass_seconds, step_seconds
from benchmarks.training.systems import SYSTEMS, Workers
from benchmarks.training.workloads import TINY, Workload, of_length

#: Whole jobs of a tiny model: the larger the model, the less what the engine itself costs would show.
EXAMPLES = (1_000, 4_000, 16_000, 64_000)
#: Tokens of every text, and batches.
TOKENS = {16: 16, 32: 8, 64: 4, 128: 3}
#: At the largest size an example (a token) may take so much more than the least of any size. Small sizes may be dearer:
#: what a job costs once is spread over few.
SLACK = 1.25


def measure(files: Files, workers: Workers, sizes: Sequence[int] = EXAMPLES) -> dict[str, Any]:
    """Microseconds for an example by the number of examples, and for a token by the length of the texts."""
    by_examples = []
    for size in sizes:
        found = _times(files, workers, TINY, size)
        by_examples.append({"examples": size, **{name: 1e6 * value for name, value in found.items()}})
    by_tokens = []
    for tokens, batches in TOKENS.items():
        found = _times(files, workers, of_length(tokens), 32 * batches)
        by_tokens.append({"tokens": tokens, **{name: 1e6 * value / tokens for name, value in found.items()}})
    return {"examples": by_examples, "tokens": by_tokens}


def _times(files: Files, workers: Workers, workload: Workload, examples: int) -> dict[str, float]:
    training = Training(epochs=1)
    part = files.part(workload, examples)
    system = SYSTEMS["limbeck"]
    found = workers.ask(system, workload, files.teacher(workload), part, training)
    return {
        "prepare": found["prepare_seconds"] / examples,
        "pass": pass_seconds(system, found, examples),
        "step": step_seconds(system, found, training.batch_size),
    }


def growth(points: Sequence[dict[str, float]], parts: Sequence[str]) -> float:
    """Of the part that grows most: the largest size's time over the least of any, both for an example or a token."""
    return max(points[-1][part] / min(point[part] for point in points) for part in parts)
