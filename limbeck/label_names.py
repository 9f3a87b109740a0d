"""Which outputs of a teacher's head mean which labels of a data set. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

_GENERIC = re.compile(r"LABEL_\d+")


def matched(found: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """For each label of the data set, the teacher's output that means it; None where the two name different ones.

    Names are compared as they are, else without case, where that leaves them distinct. A head that names nothing
    (``LABEL_0``, ``LABEL_1`` …) is taken in its own order.
    """
    if len(found) != len(wanted):
        return None
    if all(_GENERIC.fullmatch(name) for name in found):
        return list(range(len(found)))
    folded = [[name.casefold() for name in names] for names in (found, wanted)]
    for theirs, ours in ((found, wanted), folded):
        places = {name: place for place, name in enumerate(theirs)}
        if len(places) == len(theirs) and places.keys() == set(ours):
            return [places[name] for name in ours]
    return None
