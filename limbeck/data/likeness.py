"""Which texts are so alike that they may not stand on both sides of a split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence


def families(texts: Sequence[str], tenths: int) -> list[int]:
    """Give each text the number of its family: texts belong together when they share words, directly or by a chain.

    Args:
        texts: words between blanks.
        tenths: two texts are alike when the words of both are at least so many tenths of the words of either
            (Jaccard similarity of the sets).

    Returns:
        One number for each text: the place of one member of its family.
    """
    words = [frozenset(text.split()) for text in texts]
    frequency = Counter(word for each in words for word in each)
    above = list(range(len(texts)))
    holders: dict[str, list[int]] = defaultdict(list)
    for place in sorted(range(len(texts)), key=lambda one: len(words[one])):
        mine = words[place]
        # Of two sets that are so alike, each has one of the other's rarest words among its own (prefix filter of
        # Chaudhuri et al. 2006): only texts that meet there are compared.
        common = -(-tenths * len(mine) // 10)
        rarest = sorted(mine, key=lambda word: (frequency[word], word))[: len(mine) - common + 1]
        for other in {one for word in rarest for one in holders[word]}:
            shared = len(mine & words[other])
            if 10 * shared >= tenths * (len(mine) + len(words[other]) - shared):
                above[_root(above, place)] = _root(above, other)
        for word in rarest:
            holders[word].append(place)
    return [_root(above, place) for place in range(len(texts))]


def _root(above: list[int], place: int) -> int:
    while above[place] != place:
        above[place] = above[above[place]]
        place = above[place]
    return place
