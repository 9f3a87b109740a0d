"""``training.gradient_accumulation: auto``: of how many examples the parts are that a batch is computed in.

The batch of an optimizer step stays what the configuration says; how it is cut changes its gradient by rounding alone.
So the probe is free to choose by memory and time. From small parts to large it runs the training's own forward and
backward passes: on the longest examples of the data, which take the most memory, and on ones of middle length, which
the time is taken of; at the first step and at the last one, between which some methods change. Weights, optimizer and
random state are afterwards what they were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.device import random_state, restore_random_state
from limbeck.errors import OutOfMemory
from limbeck.gradients import add_gradient, trainable
from limbeck.memory import ran_out
from limbeck.scorecard import BatchProbe, BatchTry

if TYPE_CHECKING:
    from limbeck.batches import Collator
    from limbeck.methods.base import Objective
    from limbeck.phase import Phase
    from limbeck.run import Run

#: Where the run's facts keep what was found, by phase and part of its method.
PROBES = "batch_probes"
#: Speeds that are closer than this are the same: the larger part is taken then, of which a batch has fewer.
_SAME = 0.95
#: Turns that are timed; the quickest counts, since a machine that is busy elsewhere only slows down.
_ROUNDS = 2
#: As many parts as ``training.gradient_accumulation`` may name.
_MOST_PARTS = 256
#: AdamW keeps two numbers beside each weight, from its first step on.
_MOMENTS = 2


def accumulation_of(
    phase: Phase,
    part: str,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    collate: Collator,
    steps: int,
    run: Run,
) -> int:
    """In how many parts each device computes a batch of this phase, in this part of its method.

    Raises:
        OutOfMemory: not even a single example can be computed.
        Interrupted: the run is to stop; nothing was found.
    """
    if isinstance(phase.gradient_accumulation, int):
        return phase.gradient_accumulation
    if not steps:
        return 1
    known: dict[str, Any] = run.facts.setdefault(PROBES, {})
    key = f"{phase.name}/{part}"
    if key not in known:
        if (given := run.micro_batches.get(key)) is not None:
            found = BatchProbe(phase=phase.name, part=part, examples=given, memory=None, tries=())
        else:
            collate = replace(collate, data=phase.task.in_epoch(phase.train, phase.seed, 0))
            found = _probe(_Setting(phase, part, objective, optimizer, collate, steps, run))
        known[key] = found.model_dump(mode="json")
        run.provenance(micro_batches={name: one["examples"] for name, one in known.items()})
        _tell(found, phase, run)
        run.meter.begin(phase.name)  # its pace is that of the steps alone
        run.save_soon()
    examples: int = known[key]["examples"]
    return math.ceil(phase.batch_size / (run.ranks.count * examples))


@dataclass(frozen=True, slots=True)
class _Setting:
    phase: Phase
    part: str
    objective: Objective
    optimizer: torch.optim.Optimizer
    collate: Collator
    steps: int
    run: Run


def part_sizes(batch: int) -> list[int]:
    """The sizes to try, from small to large: those that cut a device's share of a batch into equal parts, each at most
    half of the next."""
    found = [batch]
    for size in range(batch - 1, 0, -1):
        if batch % size == 0 and 2 * size <= found[-1] and batch // size <= _MOST_PARTS:
            found.append(size)
    return found[::-1]


def chosen(tries: Sequence[BatchTry]) -> int:
    """The largest of the parts that fit and are about as fast as the fastest.

    Raises:
        OutOfMemory: the smallest were not computed.
    """
    able = {one.examples: one.examples_per_second for one in tries if one.fits and one.examples_per_second is not None}
    if not able:
        smallest = tries[0]
        if smallest.examples_per_second is None:
            raise OutOfMemory(
                f"Memory ran out with {_counted(smallest.examples)} at a time: training.max_length has to be smaller."
            )
        return smallest.examples  # it takes more than its share, and there is nothing smaller
    fastest = max(able.values())
    return max(examples for examples, speed in able.items() if speed >= _SAME * fastest)


def _probe(setting: _Setting) -> BatchProbe:
    run, memory = setting.run, setting.run.memory
    tries: list[BatchTry] = []
    with _undisturbed(setting):
        most, before = memory.most(run.ranks.here), memory.used()
        for examples in part_sizes(setting.phase.batch_size // run.ranks.count):
            run.poll()
            expected = _expected(tries, examples, before)
            if tries and memory.kills and most is not None and expected > most:
                found = _Measured(expected, None)
            else:
                found = _measure(setting, examples)
            tries.append(_agreed(run, examples, found, most))
            if not tries[-1].fits:
                break
    return BatchProbe(
        phase=setting.phase.name, part=setting.part, examples=chosen(tries), memory=most, tries=tuple(tries)
    )


@contextmanager
def _undisturbed(setting: _Setting) -> Iterator[None]:
    """Leave the training as it is: passes draw, and leave gradients."""
    tensors, facts = random_state()
    setting.objective.train_mode()
    try:
        yield
    finally:
        setting.optimizer.zero_grad(set_to_none=True)
        setting.run.memory.forget_peak()
        restore_random_state(tensors, facts)


def _expected(tries: Sequence[BatchTry], examples: int, before: int) -> int:
    """Bytes that so many examples will take, by what those before them took."""
    if not tries:
        return before
    last = tries[-1]
    held, fewer = (tries[-2].bytes, tries[-2].examples) if len(tries) > 1 else (before, 0)
    slope = max(0, last.bytes - held) / (last.examples - fewer)
    return last.bytes + round(slope * (examples - last.examples))


@dataclass(frozen=True, slots=True)
class _Measured:
    bytes: int
    seconds: float | None  #: for each example; None: memory ran out


def _measure(setting: _Setting, examples: int) -> _Measured:
    memory, data = setting.run.memory, setting.collate.data
    longest = data.lengths.reshape(-1, data.together).max(axis=1)
    order = np.argsort(longest, kind="stable")
    count = min(examples, len(order))
    middle = (len(order) - count) // 2
    ends = (setting.steps - 1, 0)
    memory.forget_peak()
    seconds = None
    try:
        for step in ends:
            _pass(setting, order[-count:], step)
        rounds = [_timed(setting, order[middle : middle + count], ends) for _ in range(_ROUNDS)]
        seconds = min(rounds) / (len(ends) * count)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
    state = setting.optimizer.state
    missing = (one for one in trainable(setting.objective.module) if one not in state)
    return _Measured(memory.peak() + sum(_MOMENTS * one.nbytes for one in missing), seconds)


def _timed(setting: _Setting, groups: NDArray[np.int64], steps: Sequence[int]) -> float:
    setting.run.memory.settle()
    begun = time.perf_counter()
    for step in steps:
        _pass(setting, groups, step)
    setting.run.memory.settle()
    return time.perf_counter() - begun


def _pass(setting: _Setting, groups: NDArray[np.int64], step: int) -> None:
    """Forwards and backwards. Nothing is exchanged with other ranks, one of which may run out of memory meanwhile."""
    setting.run.say_alive()
    batch = setting.collate(setting.collate.data.rows_in(groups))
    if setting.phase.weighting is not None:
        ones = torch.ones(batch.counts["examples"], device=batch.labels.device)
        batch = replace(batch, weights=ones, labelled_weight=ones.new_ones(()))
    add_gradient(setting.objective, batch, batch.counts, step, setting.steps, setting.run)


def _agreed(run: Run, examples: int, found: _Measured, most: int | None) -> BatchTry:
    """What all ranks found, as each of them has it: the mean, and whether it fits everywhere."""
    fits = found.seconds is not None and (most is None or found.bytes <= most)
    told = [float(fits), float(found.bytes), float(found.seconds is not None), found.seconds or 0.0]
    count = run.ranks.count
    fitting, held, computed, seconds = run.ranks.sum(torch.tensor(told, dtype=torch.float64)).tolist()
    return BatchTry(
        examples=examples,
        fits=fitting == count,
        bytes=round(held / count),
        examples_per_second=count * count / seconds if computed == count and seconds else None,
    )


def _tell(found: BatchProbe, phase: Phase, run: Run) -> None:
    within = f" ({found.part})" * (len(phase.method.parts()) > 1)
    each = " on each device" * (run.ranks.count > 1)
    what = (
        f"{phase.title}{within}: batches of {phase.batch_size} are computed {_counted(found.examples)} at a time{each}"
    )
    if found.tries:
        why = "the most of those that fit and are within 5 % of the fastest. Tried: "
        message = f"{what}, {why}{'; '.join(map(_shown, found.tries))}{_room(found)}"
    else:
        message = f"{what}, as in the run that this one repeats"
    run.event("batch.probed", message, **found.model_dump(mode="json"))


def _shown(one: BatchTry) -> str:
    memory = f"{one.bytes / 1e9:.2f} GB"
    if one.examples_per_second is None:
        return f"{one.examples} (not within memory, {memory})"
    return f"{one.examples} ({one.examples_per_second:,.0f} examples/s, {memory})"


def _room(found: BatchProbe) -> str:
    return "" if found.memory is None else f"; a process may hold {found.memory / 1e9:.2f} GB"


def _counted(examples: int) -> str:
    return "1 example" if examples == 1 else f"{examples} examples"
