"""What had to be trained again, in steps and in seconds, and what lies between two checkpoints to compare it with.

Steps alone do not tell: how many fit between two checkpoints depends on who else trains on the machine just then, while
the interval is one of time. All moments are the database's, from ``chaos_track``; an attempt tells its step about twice
a second, and in between it is taken to go on evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Of a span in seconds since 1970: how many of its seconds no checkpoint could be committed.
Away = Callable[[float, float], float]


@dataclass(frozen=True, slots=True)
class Mark:
    """One line of ``chaos_track``."""

    step: int
    kept: bool  #: a checkpoint of this step became the job's; else the attempt told that it is here
    at: float  #: in seconds since 1970


@dataclass(frozen=True, slots=True)
class Cost:
    """Training that is done twice, or would be if a fault came at the worst moment."""

    steps: int
    seconds: float
    away: float  #: seconds of them in which the database was away or the worker stood still

    @property
    def worked(self) -> float:
        """Seconds in which a checkpoint could have been committed."""
        return self.seconds - self.away


NOTHING = Cost(0, 0.0, 0.0)


def repeated(marks: Sequence[Mark], resumed_from: int, started: float, away: Away) -> Cost:
    """What an attempt told beyond the step that its successor went on from.

    Args:
        marks: of the attempt, in their order.
        started: when it was claimed; where it began to train is not known better if it told no step before.
    """
    last = max((mark.step for mark in marks), default=0)
    if last <= resumed_from:
        return NOTHING
    begin, end = _reached(marks, resumed_from, started), next(mark.at for mark in marks if mark.step == last)
    return Cost(last - resumed_from, end - begin, away(begin, end))


def stretches(marks: Sequence[Mark]) -> list[list[Mark]]:
    """The marks of an attempt, cut where it told a lower step than before: ranks were lost, and all started again."""
    found: list[list[Mark]] = [[]]
    told = 0
    for mark in marks:
        if not mark.kept:
            if mark.step < told:
                found.append([])
            told = mark.step
        found[-1].append(mark)
    return found


def exposures(marks: Sequence[Mark], started: float, away: Away) -> list[Cost]:
    """For each checkpoint of an attempt but its first: what a fault just before its commit would have cost.

    That is the interval as it was: the time set, what writing and storing the checkpoint took, and the wait for a core.
    """
    found = []
    kept = [mark for mark in marks if mark.kept]
    for before, after in pairwise(kept):
        if after.step > before.step:
            begin = _reached(marks, before.step, started)
            furthest = max(mark.step for mark in marks if mark.at <= after.at)
            found.append(Cost(furthest - before.step, after.at - begin, away(begin, after.at)))
    return found


def _reached(marks: Sequence[Mark], step: int, started: float) -> float:
    """When the state was taken that the attempt's last checkpoint of ``step`` holds.

    A state lies before its commit: at the moment when the training came to ``step``, if it went on evenly from what was
    told before to what was told then. Where an earlier checkpoint has the same step (models are evaluated, and nothing
    is trained), it is newer than that one. An inherited one counts from the last time that its step was told.
    """
    kept = [mark.at for mark in marks if mark.kept and mark.step == step]
    if not kept:
        return max((mark.at for mark in marks if mark.step <= step), default=started)
    if len(kept) > 1:
        return kept[-2]
    there = next(mark for mark in marks if mark.step >= step)
    earlier = next((mark for mark in reversed(marks) if mark.step < step and mark.at <= there.at), None)
    if earlier is None:
        return there.at
    share = (step - earlier.step) / (there.step - earlier.step)
    return earlier.at + share * (there.at - earlier.at)
