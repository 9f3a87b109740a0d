"""The same work: without dropout, and with all examples in one batch, every trainer has the same losses step by step.

The first step's loss says that teacher, student's start, token ids and loss are the same; the later ones, that
gradients, clipping, AdamW, decay and schedule are. TextBrewer's cross-entropy is more than the divergence by the
entropy of the teacher's softened answers, which no step changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.order import Training
from benchmarks.training.files import Files
from benchmarks.training.systems import SYSTEMS, System, Workers
from benchmarks.training.workloads import Workload

STEPS = 3
_EXAMPLES = 8
#: Sums in another order differ by some 1e-6; another loss, rate or mask by far more.
TOLERANCE = 2e-4


class Unfair(Exception):
    """The trainers do not do the same."""


def check(files: Files, workers: Workers, workload: Workload, systems: Sequence[str]) -> dict[str, Any]:
    """Each system's losses over the first steps.

    Raises:
        Unfair: they differ.
    """
    training = Training(epochs=STEPS, batch_size=_EXAMPLES, warmup_ratio=0.4)
    part, teacher = files.part(workload, training.batch_size, draw=1), files.teacher(workload, dropout=False)
    losses: dict[str, list[float]] = {}
    for name in systems:
        system = SYSTEMS[name]
        found = workers.ask(system, workload, teacher, part, training, entropy=system.trainer is not None)
        losses[name] = compared(system, training, found)
    require_equal(workload.name, losses)
    return {"steps": STEPS, "losses": losses}


def compared(system: System, training: Training, found: dict[str, Any]) -> list[float]:
    """The losses as a divergence."""
    if system.trainer is None or not system.trainer.startswith("textbrewer"):
        return list(found["losses"])
    over = training.alpha * training.temperature**2 * found["entropy"]
    return [loss - over for loss in found["losses"]]


def require_equal(workload: str, losses: dict[str, list[float]]) -> None:
    """
    Raises:
        Unfair: a system has other losses than Limbeck, or another number of steps.
    """
    ours = losses["limbeck"]
    for name, theirs in losses.items():
        same = len(theirs) == len(ours) and all(
            abs(one - other) <= TOLERANCE for one, other in zip(ours, theirs, strict=True)
        )
        if not same:
            raise Unfair(
                f"{workload}: without dropout, on the same batch, the losses of the first steps are {theirs} by "
                f"{name} and {ours} by limbeck: what follows would compare different trainings"
            )
