"""Students of networks in stages (ResNet): which residual blocks of the teacher's stay, and under which numbers.

A stage's first block halves the picture and widens the channels, so that it always stays; the others keep the shape of
what they read, and any of them can go. Blocks are counted from 0 through all stages, and are what ``student.layers``
means of such a teacher.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = re.compile(r"((?:.*\.)?encoder\.stages\.)(\d+)\.layers\.(\d+)(\..*)")


def firsts(stages: Sequence[int]) -> list[int]:
    """The number of each stage's first block; ``stages`` are how many blocks each has."""
    return [end - blocks for end, blocks in zip(accumulate(stages), stages, strict=True)]


def blocks_of(stages: Sequence[int], count: int, init: str) -> tuple[int, ...]:
    """``count`` of a teacher's blocks, shared among its stages as it shares its own.

    Args:
        count: at least one for each stage, at most as many as there are.
        init: which of a stage's blocks beside its first: ``first``, ``last``, ``uniform`` or ``skip``.
    """
    chosen: list[int] = []
    for start, depth, kept in zip(firsts(stages), stages, _shares(stages, count), strict=True):
        more, rest = kept - 1, depth - 1
        places = {
            "first": range(1, kept),
            "last": range(depth - more, depth),
            "uniform": [(place + 1) * rest // more for place in range(more)],
            "skip": [place * depth // kept for place in range(1, kept)],
        }[init]
        chosen += [start, *(start + place for place in places)]
    return tuple(chosen)


def _shares(stages: Sequence[int], count: int) -> list[int]:
    """How many blocks each stage keeps: one, and of the others its share, the largest remainders rounded up."""
    free, left = [blocks - 1 for blocks in stages], count - len(stages)
    exact = [left * blocks / max(1, sum(free)) for blocks in free]
    kept = [int(share) for share in exact]
    order = sorted(range(len(stages)), key=lambda stage: (kept[stage] - exact[stage], stage))
    for stage in order[: left - sum(kept)]:
        kept[stage] += 1
    return [1 + share for share in kept]


def missing_firsts(stages: Sequence[int], blocks: Sequence[int]) -> list[int]:
    """Blocks that a student cannot be without."""
    return [first for first in firsts(stages) if first not in blocks]


def cut_stages(config: Any, blocks: Sequence[int]) -> Any:
    """The configuration of a network of these blocks."""
    cut = copy.deepcopy(config)
    cut.depths = [len(kept) for kept in _by_stage(config.depths, blocks)]
    return cut


def cut_stage_weights(stages: Sequence[int], weights: Mapping[str, Tensor], blocks: Sequence[int]) -> dict[str, Tensor]:
    """The weights of :func:`cut_stages`' network."""
    kept = list(_by_stage(stages, blocks))
    cut = {}
    for name, value in weights.items():
        found = _BLOCK.fullmatch(name)
        if found is None:
            cut[name] = value
        elif (block := int(found[3])) in kept[int(found[2])]:
            cut[f"{found[1]}{found[2]}.layers.{kept[int(found[2])].index(block)}{found[4]}"] = value
    return cut


def _by_stage(stages: Sequence[int], blocks: Sequence[int]) -> Iterator[list[int]]:
    """The blocks of each stage, counted within it."""
    for start, depth in zip(firsts(stages), stages, strict=True):
        yield [block - start for block in blocks if start <= block < start + depth]
