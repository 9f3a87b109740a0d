"""Which outputs of a teacher's head mean which labels of a data set. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

_GENERIC = re.compile(r"LABEL_\d+")


def matched(found: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """For each label of the data set, the teacher's output that means it; None where the two name different ones.

    Names are compared as they are, else without case, where that leaves them distinct. Where one side names nothing
    (:func:`placed`) the outputs are taken in their own order.
    """
    if len(found) != len(wanted):
        return None
    folded = [[name.casefold() for name in names] for names in (found, wanted)]
    for theirs, ours in ((found, wanted), folded):
        places = {name: place for place, name in enumerate(theirs)}
        if len(places) == len(theirs) and places.keys() == set(ours):
            return [places[name] for name in ours]
    unnamed = all(_GENERIC.fullmatch(name) for name in found)
    # Labels that are the numbers of outputs; a teacher whose own names are numbers may count otherwise.
    numbers = list(wanted) == [str(place) for place in range(len(wanted))] and not any(map(str.isdigit, found))
    return list(range(len(found))) if unnamed or numbers else None


def placed(found: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Which output was taken for which label, as a text, where nothing but their order says so: the teacher names its
    outputs ``LABEL_0``, ``LABEL_1`` …, or the data set has their numbers, 0, 1 … None where names say it."""
    if matched(found, wanted) is None or {one.casefold() for one in found} == {one.casefold() for one in wanted}:
        return None
    pairs = [f"{theirs!r} is {ours!r}" for theirs, ours in zip(found, wanted, strict=True)]
    return ", ".join(pairs[:8]) + (f" and {len(pairs) - 8} more" if len(pairs) > 8 else "")


def said_of_placed(who: str, taken: str) -> str:
    """A sentence about what :func:`placed` found of a teacher."""
    return f"The labels of {who} are those of the data set by their order alone, as no names say which: {taken}."
