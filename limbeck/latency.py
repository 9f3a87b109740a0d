"""How long models take on this machine: side by side, on real texts, tokenising left out.

All models answer the same batches of test examples in the order in which they come, padded as they would be. They take
turns in short blocks within one run: what else the machine does meets them alike, and only their ratios carry over to
another machine. A block is long enough that a model finds its weights in the cache again, as in service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.runtime.encoding import Feeds, Row
from limbeck.runtime.feeding import feeds_of
from limbeck.runtime.images import Picture
from limbeck.scorecard import Latency

BATCH_SIZES = (1, 32)
Runner = Callable[[Feeds], Any]
"""Answers a padded batch; returns when the logits are on the host."""

#: Texts of a block; a batch of more is a block of its own.
_BLOCK = 5
_MOST_BYTES = 2**28  # of batches that are held ready
_FEWEST_CALLS, _MOST_CALLS = 3, 200


def measure_latency(
    runners: Mapping[str, Runner],
    rows: Sequence[Row] | Sequence[Picture],
    *,
    pad_id: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 1.5,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, tuple[Latency, ...]]:
    """Time every runner at every batch size.

    Args:
        runners: the models by name; all of them understand the ids in ``rows``.
        rows: test examples in their own order; at least one.
        pad_id: the padding token.
        seconds: about as long each model is timed at each batch size; a slow model is called 4 times at least.
        poll: called between blocks; may raise to stop.
    """
    timed: dict[str, list[Latency]] = {name: [] for name in runners}
    for size in batch_sizes:
        for name, calls in _time(runners, _batches(rows, size, pad_id), max(1, _BLOCK // size), seconds, poll).items():
            p50, p95 = np.percentile(calls, (50, 95)) * 1000
            timed[name].append(
                Latency(
                    batch_size=size,
                    p50_ms=float(p50),
                    p95_ms=float(p95),
                    examples_per_second=size * len(calls) / sum(calls),
                )
            )
    return {name: tuple(sizes) for name, sizes in timed.items()}


def one_after_the_other(models: Sequence[Sequence[Latency]]) -> tuple[Latency, ...]:
    """What several models take that each answer every batch in turn: by batch size the sums of what each takes.

    The sum of 95th percentiles is a bound from above: seldom are all slow at the same text.
    """
    return tuple(
        Latency(
            batch_size=each[0].batch_size,
            p50_ms=sum(one.p50_ms for one in each),
            p95_ms=sum(one.p95_ms for one in each),
            examples_per_second=1 / sum(1 / one.examples_per_second for one in each),
        )
        for each in zip(*models, strict=True)
    )


def _batches(rows: Sequence[Row] | Sequence[Picture], size: int, pad_id: int) -> list[Feeds]:
    """Batches of exactly ``size`` rows; where the rows run out, they come again."""
    count = min(_MOST_CALLS, -(-len(rows) // size))
    batches: list[Feeds] = []
    for start in range(0, count * size, size):
        batches.append(feeds_of([rows[(start + i) % len(rows)] for i in range(size)], pad_id))  # type: ignore[arg-type]
        # Of large images a few batches fill the memory; the models meet the same ones again.
        if len(batches) * sum(values.nbytes for values in batches[0].values()) > _MOST_BYTES:
            break
    return batches


def _time(
    runners: Mapping[str, Runner], batches: Sequence[Feeds], block: int, seconds: float, poll: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each call; the models take turns after ``block`` calls."""
    for run in runners.values():
        for i in range(block):  # the first calls allocate and are not counted
            run(batches[i % len(batches)])
    calls: dict[str, list[float]] = {name: [] for name in runners}
    until = time.perf_counter() + seconds * len(runners)
    for first in range(0, _MOST_CALLS, block):
        if first >= _FEWEST_CALLS and time.perf_counter() >= until:
            break
        for name, run in runners.items():
            poll()
            for i in range(first, first + block):
                start = time.perf_counter()
                run(batches[i % len(batches)])
                calls[name].append(time.perf_counter() - start)
    return calls
