"""Texts on their way through the layers of a student with early exits, and which of them are computed next.

Continuous batching by layer: what stays behind a layer waits there, and is computed with whoever else waits at that
layer by then, from whatever request. Two rules decide:

- Texts share a call when they are of like length, the oldest first, as many as fill it (:data:`FULL` tokens).
- The call with the lowest *rank* is next: the number of calls that had begun when its oldest text came, and
  :data:`PATIENCE` for each layer that it has behind it. So a text lets those that came up to so many calls behind it
  catch up, to be computed with them; it waits for nobody who has not come, and sooner or later everybody else is
  behind it.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.runtime.encoding import FULL, STRETCH, Row

#: Calls by which a text lets younger ones go first, for each layer that it has behind it.
PATIENCE = 2
#: Tokens whose states may wait between layers before new texts have to stay outside: 25 MB at a width of 384.
HELD = 16_384
_age = attrgetter("arrived")


@dataclass(eq=False, slots=True)
class Text:
    """A text on its way."""

    row: Row
    speed: float  #: at which it leaves; 0: behind the last layer
    owner: Any  #: whatever tells the caller whose it is
    layers: int = 0  #: that it has behind it
    arrived: int = 0  #: calls that had begun when it came
    #: (tokens, hidden): what its last layer gave; none in front of the first layer and behind the exit.
    states: NDArray[np.float32] | None = None
    #: (classes,), once it has left.
    logits: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.row)


class Layers:
    """What waits in front of the layers of one student. Not for several threads at once.

    Args:
        full: tokens of a call, padding included.
        stretch: how much longer than the shortest text of a call its longest may be.
        held: tokens whose states may wait.
        patience: see above; 0: the oldest text first, whoever could join it.
    """

    def __init__(
        self, *, full: float = FULL, stretch: float = STRETCH, held: int = HELD, patience: int = PATIENCE
    ) -> None:
        self._full, self._most_held, self._patience = full, held, patience
        self._step = math.log(stretch)
        #: By layers done and length: of like length are those whose logarithms fall into the same step.
        self._waiting: dict[tuple[int, int], list[Text]] = {}
        self._held = 0  # tokens with states that wait
        self._calls = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def held(self) -> int:
        """Tokens whose states wait."""
        return self._held

    def add(self, texts: Iterable[Text]) -> None:
        """Let new texts wait for the first layer."""
        for text in texts:
            text.arrived = self._calls
            self._waiting.setdefault(self._place(text), []).append(text)

    def put(self, texts: Iterable[Text]) -> None:
        """Let texts that stay wait for their next layer."""
        for text in texts:
            insort(self._waiting.setdefault(self._place(text), []), text, key=_age)
            self._held += len(text)

    def take(self, gone: Callable[[Text], bool] = lambda _: False) -> list[Text]:
        """The texts that are computed next, all in front of the same layer; none where nobody waits.

        Args:
            gone: says of a text, once, that nobody wants it any more; it is forgotten.
        """
        while self._waiting:
            taken = self._company(min(self._open(), key=self._rank), gone)
            if taken:
                self._calls += 1
                return taken
        return []

    def _place(self, text: Text) -> tuple[int, int]:
        return text.layers, int(math.log(max(1, len(text))) / self._step)

    def _open(self) -> Iterable[tuple[int, int]]:
        """Where a call may come from: not from outside while too much is inside."""
        inside = [place for place in self._waiting if place[0]] if self._held >= self._most_held else None
        return inside or self._waiting

    def _rank(self, place: tuple[int, int]) -> tuple[int, int]:
        """Of two that are equal the one that is farther on leads."""
        return self._waiting[place][0].arrived + self._patience * place[0], -place[0]

    def _company(self, place: tuple[int, int], gone: Callable[[Text], bool]) -> list[Text]:
        waiting = self._waiting[place]
        taken: list[Text] = []
        longest = passed = 0
        for text in waiting:
            if not gone(text):
                longest = max(longest, len(text))
                if taken and longest * (len(taken) + 1) > self._full:
                    break
                taken.append(text)
            passed += 1
        if place[0]:
            self._held -= sum(map(len, waiting[:passed]))
        del waiting[:passed]
        if not waiting:
            del self._waiting[place]
        return taken
