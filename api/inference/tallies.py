"""What is counted of a student while it is loaded: requests by how they ended, how long answers took, how many texts
are computed together.

Counted in plain numbers, which cost a request about a microsecond, and made into metrics when somebody asks for them
(``api/collectors.py``). What is counted of a student goes with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from weakref import WeakKeyDictionary

from limbeck.errors import Busy, InvalidInput, TooSlow
from limbeck.runtime import Predictor

#: Upper bounds of what is told apart.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32)


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    INVALID = "invalid"  #: what was asked
    BUSY = "busy"  #: too much waited already
    LATE = "late"  #: no answer in time
    LEFT = "left"  #: the caller hung up
    FAILED = "failed"


_OUTCOMES: tuple[tuple[type[BaseException], Outcome], ...] = (
    (InvalidInput, Outcome.INVALID),
    (Busy, Outcome.BUSY),
    (TooSlow, Outcome.LATE),
    (asyncio.CancelledError, Outcome.LEFT),  # by api/hanging_up.py
    (BaseException, Outcome.FAILED),
)


class Spread:
    """How many values there were up to each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulated(self) -> list[tuple[str, float]]:
        """For each bound, and ``+Inf``, how many values are at most that."""
        total, found = 0, []
        for bound, count in zip((*map(float, self._bounds), "+Inf"), [*self._counts], strict=True):
            total += count
            found.append((str(bound), float(total)))
        return found


class Tally:
    """One student's; ``seconds`` and ``ended`` are the event loop's, ``texts`` that of who holds the batcher's lock."""

    def __init__(self) -> None:
        self.ended = dict.fromkeys(Outcome, 0)
        self.seconds = Spread(_SECONDS)  #: of requests that were answered
        self.texts = Spread(_TEXTS)  #: that are computed together

    def computed(self, texts: int) -> None:
        """So many were computed together, if any."""
        if texts:
            self.texts.add(texts)


class Counted:
    """Counts what happens inside as one request."""

    __slots__ = ("_began", "_tally")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._tally.ended[Outcome.ANSWERED] += 1
            self._tally.seconds.add(time.perf_counter() - self._began)
        else:
            self._tally.ended[next(outcome for kind, outcome in _OUTCOMES if isinstance(error, kind))] += 1


class Tallies:
    """By student; each is forgotten with it."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Predictor, Tally] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, student: Predictor) -> Tally:
        tally = self._of.get(student)
        if tally is None:
            with self._lock:
                tally = self._of.setdefault(student, Tally())
        return tally
