"""One training, and where it is: what the loop is given, and what it goes on from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limbeck.batches import Encoded
from limbeck.methods.base import Method, Models, Part

if TYPE_CHECKING:
    from limbeck.ensemble import Ensemble, Panel
    from limbeck.soft_loss import SoftLoss
    from limbeck.tasks.base import Task
    from limbeck.weighting import SampleWeighting


@dataclass(frozen=True, slots=True)
class Phase:
    """One training: who learns what from which data, and how."""

    name: str  #: ``teacher``, ``distilling`` or ``baseline``: the prefix of its metrics and its item of the plan
    method: Method
    task: Task
    models: Models
    train: Encoded
    validation: Encoded
    teacher_logits: Tensor | None  # (training rows, or their tokens, classes)
    epochs: int
    learning_rate: float
    batch_size: int
    gradient_accumulation: int | Literal["auto"]
    warmup_ratio: float
    weight_decay: float
    seed: int
    loss: SoftLoss | None = None  #: how the student is compared with the teacher's logits
    weighting: SampleWeighting | None = None  #: which examples count more
    labelled: int | None = None  #: the first so many training examples have a label; None: all
    ensemble: Ensemble | None = None  #: of several teachers, whose logits stand side by side
    token_budget: int | None = None  #: of what a device computes at once, padding included
    teacher_states: Tensor | None = None  #: (training rows, places, width): as ``Method.teacher_places`` names them
    panel: Callable[[], Panel] | None = None  #: loads these teachers, where they are asked in every step instead
    cut: int | None = None  #: the steps after which it ends, within its last epoch; None: at that one's end
    about: str = ""  #: of a trial what it tries, for people

    def __post_init__(self) -> None:
        if self.cut is not None and math.ceil(self.cut / self.steps_per_epoch) != self.epochs:
            raise ValueError(f"step {self.cut} is not in epoch {self.epochs} of {self.steps_per_epoch} steps each")

    @property
    def labels(self) -> NDArray[Any]:
        """Those of the training examples that have one, as ``train.labels``."""
        return self.train.labels[: self.labelled]

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch if self.cut is None else self.cut

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train.groups / self.batch_size)

    @property
    def title(self) -> str:
        """For people: ``teacher-2`` is the second of several teachers."""
        if self.name.startswith("teacher"):
            return self.name.replace("-", " ").capitalize()
        return {"distilling": "Student", "baseline": "Baseline"}.get(self.name) or f"Trial of {self.about}"

    def part_steps(self) -> list[int]:
        """How the steps are shared among the method's parts."""
        return share_steps(self.method, self.steps)

    def steps_done(self, position: Position) -> int:
        """Of all parts. A part goes on in the data where the one before it ended: one that began anew with them would
        leave the end of a short training's data to nobody."""
        return sum(self.part_steps()[: position.part]) + position.step

    def epoch_at(self, position: Position) -> int:
        """From 1."""
        return math.ceil(self.steps_done(position) / self.steps_per_epoch)

    def place(self, part: Part, position: Position) -> str:
        """For people. The epoch in which one part ends and the next begins is looked at in both."""
        parts, done = len(self.method.parts()), self.steps_done(position)
        within = "within " * (done % self.steps_per_epoch > 0 and done < self.steps)
        named = f", part {position.part + 1} of {parts} ({part.name})" if parts > 1 else ""
        return f"{self.title}{named}, {within}epoch {self.epoch_at(position)} of {self.epochs}"

    def kept(self, part: Part, position: Position) -> str:
        """Which weights ``part`` ends with, for people."""
        if not part.selects:
            return "as its last step left it"
        within = f" of part {part.name!r}" * (len(self.method.parts()) > 1)
        return f"epoch {position.best_epoch}{within} kept"


def share_steps(method: Method, steps: int) -> list[int]:
    """How many of ``steps`` each part of the method gets: by its share, and one at least; where there are fewer steps
    than parts, the last ones get them."""
    shares = np.cumsum([part.share for part in method.parts()])
    ends = [0]
    for number, share in enumerate(shares, start=1):
        end = max(round(steps * float(share / shares[-1])), ends[-1] + 1)
        ends.append(max(0, min(end, steps - len(shares) + number)))
    return [end - start for start, end in itertools.pairwise(ends)]


@dataclass(slots=True)
class Position:
    """Where a training is: with the tensors, all that a resumed run needs to go on as if nothing had happened."""

    part: int = 0
    step: int = 0  #: within the part
    validated: int = 0  #: the last step after which the student was validated
    best_score: float = -2.0  #: under every metric
    best_epoch: int = 0
    variants: dict[str, float] = field(default_factory=dict)  #: scores of :meth:`Objective.variants`
    history: list[dict[str, float]] = field(default_factory=list)
    window: dict[str, float] = field(default_factory=dict)  #: sums of the losses since the last metrics point
    window_steps: int = 0
    weighed: int = 0  #: steps so far that learned what examples are weighed in: their answers, or labels
    scaled: bool = True  #: whether a head of numbers steps in units of the labels' spread

    def begin(self, part: int) -> None:
        """Go on to the start of a later part."""
        self.part, self.step, self.validated, self.best_score, self.variants = part, 0, 0, -2.0, {}

    def weighing(self, phase: Phase) -> float:
        """The share that is done of the steps that examples are weighed in, over all parts: a part that compares what
        is inside is no part of a curriculum, and those that learn answers share one."""
        return self.weighed / (self.weighed + phase.steps - phase.steps_done(self))
