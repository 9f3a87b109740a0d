"""Errors about one of several inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from limbeck.errors import InvalidInput, Problem

_PLACE = re.compile(r"/inputs/(\d+)(/.*)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """The first input of a list that is wrong."""

    place: int
    problems: tuple[Problem, ...]  #: their pointers lead into this input

    def __str__(self) -> str:
        return "; ".join(f"{one.pointer}: {one.detail}" if one.pointer else one.detail for one in self.problems)


def first_fault(error: InvalidInput) -> Fault | None:
    """Which input an error is about; None where it is about none of a list."""
    found = [(match, one.detail) for one in error.problems if (match := _PLACE.fullmatch(one.pointer))]
    if not found:
        return None
    place = min(int(match[1]) for match, _ in found)
    problems = tuple(Problem(match[2] or "", detail) for match, detail in found if int(match[1]) == place)
    return Fault(place, problems)
