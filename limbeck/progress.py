"""How far a job is, and how long it will still take: an estimate from counted work and a measured rate.

Everything that multiplies matrices is counted in useful floating-point operations, known before the job starts from the
texts' lengths and the models' shapes; what does not scale with them (export, timing) is planned in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.callbacks import Callbacks, Progress, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Operations per second that a small machine reaches, until this run has measured its own.
_FIRST_GUESS = 4e10
_FIRST_GUESS_SECONDS = 3.0
_INTERVAL = 0.5
#: A training step costs a forward pass and about two more for the gradients.
TRAINING = 3.0


def forward_work(config: PreTrainedConfig, layers: int, lengths: NDArray[np.int64]) -> float:
    """Floating-point operations of one pass over texts of these lengths through so many layers (two per multiply-add):
    four projections and the two of the feed-forward part per token, and attention, which grows with the square.

    The patches of an image are its tokens. Of a network in stages each token is a square of 16 × 16 pixels."""
    if hasattr(config, "depths"):
        return _convolution_work(config) * float(lengths.sum())
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", getattr(config, "hidden_dim", 4 * hidden)))
    answered = hidden  # by all heads of a layer together
    if (kept := getattr(config, "kept_heads", None)) is not None:
        answered = hidden // int(config.num_attention_heads) * kept
    linear = 2.0 * (4 * hidden * answered + 2 * hidden * inner) * float(lengths.sum())
    attention = 4.0 * answered * float(np.square(lengths, dtype=np.float64).sum())
    return layers * (linear + attention)


def _convolution_work(config: PreTrainedConfig) -> float:
    """Of a ResNet, for a square of 16 × 16 pixels. The stem leaves 4 × 4 places of it, each later stage a quarter."""
    found: Any = config
    places, before, work = (
        16.0,
        int(found.embedding_size),
        2.0 * 64 * 49 * int(found.num_channels * found.embedding_size),
    )
    for number, (width, blocks) in enumerate(zip(found.hidden_sizes, found.depths, strict=True)):
        places = places / 4 if number else places
        # A bottleneck narrows to a quarter, a basic block is two convolutions of 3 × 3.
        own = 17 / 16 * width * width if found.layer_type == "bottleneck" else 18.0 * width * width
        work += 2 * places * (blocks * own + before * width)
        before = width
    return work


@dataclass(frozen=True, slots=True)
class Item:
    """A planned piece of the job."""

    stage: Stage
    work: float = 0.0  #: floating-point operations
    seconds: float = 0.0  #: what does not scale with them


class Meter:
    """Turns work done into :class:`~limbeck.callbacks.Progress`."""

    def __init__(self, callbacks: Callbacks, clock: Callable[[], float] = time.monotonic) -> None:
        self.step = 0
        self.total_steps = 0
        #: Seconds by stage, over all attempts.
        self.seconds: dict[str, float] = {}
        self._callbacks, self._clock = callbacks, clock
        self._items: dict[str, Item] = {}
        self._left: dict[str, float] = {}  # share of each item still to do
        self._item = ""
        self._stage: Stage | None = None
        self._percent = 0.0
        self._rate_work, self._rate_seconds = _FIRST_GUESS * _FIRST_GUESS_SECONDS, _FIRST_GUESS_SECONDS
        self._mark = self._reported = clock()
        self._examples, self._item_seconds = 0.0, 0.0

    def enter(self, stage: Stage) -> None:
        """A stage begins (or goes on)."""
        self._count_seconds()
        if stage is not self._stage:
            self._stage = stage
            self._callbacks.on_stage(stage)
            self._report(force=True)

    def plan(self, items: Mapping[str, Item], total_steps: int) -> None:
        """What the whole job consists of."""
        self._items = dict(items)
        self._left = {name: self._left.get(name, 1.0) for name in items}
        self.total_steps = total_steps

    def begin(self, item: str) -> None:
        """Work on ``item`` begins or goes on."""
        self._count_seconds()
        self.enter(self._items[item].stage)
        self._item, self._examples, self._item_seconds = item, 0.0, 0.0

    def advance(self, share: float, *, examples: int = 0, steps: int = 0) -> None:
        """``share`` of the current item was done, over so many examples and optimizer steps."""
        seconds = self._count_seconds()
        item = self._items[self._item]
        self._left[self._item] = max(0.0, self._left[self._item] - share)
        if item.work:
            self._rate_work += item.work * share
            self._rate_seconds += seconds
        self._examples += examples
        self._item_seconds += seconds
        self.step += steps
        self._report()

    def finish(self, item: str) -> None:
        """Nothing of ``item`` is left to do."""
        self._count_seconds()
        self._left[item] = 0.0
        self._report(force=True)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        self._count_seconds()
        return {
            "step": self.step,
            "seconds": dict(self.seconds),
            "left": dict(self._left),
            "percent": self._percent,
            "rate": self._rate_work / self._rate_seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the rate, measured elsewhere perhaps, is a first guess again."""
        self.step, self._percent = state["step"], state["percent"]
        self.seconds, self._left = dict(state["seconds"]), dict(state["left"])
        self._rate_work = state["rate"] * self._rate_seconds

    def _count_seconds(self) -> float:
        now = self._clock()
        passed, self._mark = now - self._mark, now
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + passed
        return passed

    def _remaining(self) -> float:
        rate = self._rate_work / self._rate_seconds
        return sum((item.work / rate + item.seconds) * self._left[name] for name, item in self._items.items())

    def _report(self, *, force: bool = False) -> None:
        now = self._clock()
        if self._stage is None or (not force and now - self._reported < _INTERVAL):
            return
        self._reported = now
        remaining = self._remaining() if self._items else None
        if remaining is not None:
            spent = sum(self.seconds.values())
            self._percent = max(self._percent, 100 * spent / (spent + remaining) if spent + remaining else 0.0)
        speed = self._examples / self._item_seconds if self._examples and self._item_seconds else None
        self._callbacks.on_progress(
            Progress(self._stage, self.step, self.total_steps, round(self._percent, 2), speed, remaining)
        )
