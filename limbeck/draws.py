"""Draws that belong to an example and a step, whatever batch, part of a batch or rank the example comes in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def drawn(places: NDArray[np.int64], width: int, count: int, *, seed: int, step: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), (count, examples, width): ``count`` for each token of these examples.

    Every example has a stream of its own, made of its place in the split, the seed and the step (SplitMix64; Steele et
    al. 2014, Fast splittable pseudorandom number generators); more padding lengthens it and changes nothing before.
    """
    key = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    streams = _mixed(key ^ _mixed(places.astype(np.uint64) + _GOLDEN))  # (examples,)
    turns = np.arange(1, width * count + 1, dtype=np.uint64).reshape(width, count).T  # (count, width)
    bits = _mixed(streams[None, :, None] + _GOLDEN * turns[:, None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
