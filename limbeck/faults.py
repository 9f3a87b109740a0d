"""Errors about some of several inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import InvalidInput, Problem, TooLarge

_PLACE = re.compile(r"/inputs/(\d+)(/.*)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """An input of a list that is wrong."""

    place: int
    problems: tuple[Problem, ...]  #: their pointers lead into this input

    def __str__(self) -> str:
        return "; ".join(f"{one.pointer}: {one.detail}" if one.pointer else one.detail for one in self.problems)


@dataclass(frozen=True, slots=True)
class Refused:
    """What stands in the place of an answer, or of an input that could not even be read."""

    message: str
    given: Any = None  #: of an input that could not be read, as much as could be


def faults(error: InvalidInput) -> list[Fault]:
    """Which inputs an error is about, in their order; none where it is about none of a list."""
    found: dict[int, list[Problem]] = {}
    for one in error.problems:
        if match := _PLACE.fullmatch(one.pointer):
            found.setdefault(int(match[1]), []).append(Problem(match[2] or "", one.detail))
    return [Fault(place, tuple(problems)) for place, problems in sorted(found.items())]


def first_fault(error: InvalidInput) -> Fault | None:
    """The first of :func:`faults`."""
    return next(iter(faults(error)), None)


def ask_the_rest(ask: Callable[[list[Any]], Sequence[Any]], inputs: Sequence[Any]) -> list[Any]:
    """The answers to all inputs that can be asked; in the place of the others why not, as :class:`Refused`.

    Raises:
        InvalidInput, TooLarge: that is about something else than the inputs.
    """
    answers = [one if isinstance(one, Refused) else None for one in inputs]
    left = [place for place, one in enumerate(inputs) if not isinstance(one, Refused)]
    while left:
        try:
            found = ask([inputs[place] for place in left])
        except InvalidInput as error:
            refused = {left[fault.place]: Refused(str(fault)) for fault in faults(error)}
            if not refused:
                raise
        except TooLarge as error:
            if len(left) > 1:
                raise
            refused = {left[0]: Refused(error.message)}
        else:
            for place, answer in zip(left, found, strict=True):
                answers[place] = answer
            break
        for place, why in refused.items():
            answers[place] = why
        left = [place for place in left if place not in refused]
    return answers
