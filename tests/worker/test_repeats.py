"""What the chaos test says was trained again, against tracks worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.chaos.evidence import Together
from benchmarks.chaos.faults import Outage
from benchmarks.chaos.judgement import Judgement, unexcused
from benchmarks.chaos.repeats import NOTHING, Cost, Mark, exposures, repeated, stretches


def never(begin: float, end: float) -> float:
    return 0.0


#: 100 steps a second, told every half second; a checkpoint of step 100 that takes 0.2 s to be stored.
TRACK = [
    Mark(0, True, 10.0),
    Mark(0, False, 10.0),
    Mark(50, False, 10.5),
    Mark(100, False, 11.0),
    Mark(100, True, 11.2),
    Mark(150, False, 11.5),
    Mark(200, False, 12.0),
    Mark(200, False, 12.5),
]


def test_repeated_steps_are_counted_in_the_seconds_that_they_took() -> None:
    """Guards against a measure in steps alone, which calls the same second of training more or less by the machine."""
    assert repeated(TRACK, 100, 8.0, never) == Cost(100, 1.0, 0.0)


def test_the_moment_of_a_checkpoint_lies_between_what_was_told() -> None:
    """Guards against a checkpoint that is taken to be as young as its commit, which makes each loss look smaller."""
    track = [*TRACK[:3], Mark(100, False, 11.0), Mark(75, True, 11.2), *TRACK[5:]]
    cost = repeated(track, 75, 8.0, never)
    assert (cost.steps, cost.seconds) == (125, pytest.approx(1.25))


def test_evaluation_between_two_checkpoints_of_one_step_is_not_called_training() -> None:
    track = [*TRACK[:5], Mark(100, True, 14.0), Mark(100, True, 15.0), Mark(150, False, 15.5)]
    assert repeated(track, 100, 8.0, never) == Cost(50, 1.5, 0.0)


def test_without_a_told_step_the_whole_attempt_counts() -> None:
    """Guards against a figure that is too good: the attempt's start is the earliest moment of its training."""
    assert repeated([Mark(30, False, 11.0)], 20, 8.0, never) == Cost(10, 3.0, 0.0)


def test_an_inherited_checkpoint_counts_from_when_the_training_went_on() -> None:
    marks = [Mark(20, False, 9.0), Mark(20, False, 10.0), Mark(30, False, 11.0)]
    assert repeated(marks, 20, 8.0, never) == Cost(10, 1.0, 0.0)


def test_nothing_is_repeated_where_the_successor_goes_on_from_the_last_step() -> None:
    assert repeated(TRACK, 200, 8.0, never) == NOTHING


def test_what_lies_between_two_checkpoints_includes_the_way_to_the_row() -> None:
    """Guards against a goal that is stricter than what was set: a checkpoint counts once the row names it."""
    (cost,) = exposures(TRACK, 8.0, never)
    assert (cost.steps, cost.seconds) == (100, pytest.approx(1.2))


def test_only_what_lies_within_an_outage_is_excused() -> None:
    """Guards against a loss that is excused because an outage touches it, or because another worker stood still."""
    assert Outage(11.5, 20.0).overlap(11.0, 12.0, pid=7) == 0.5
    assert Outage(11.5).overlap(11.0, 12.0, pid=7) == 0.5
    assert Outage(12.5, 20.0).overlap(11.0, 12.0, pid=7) == 0.0
    assert Outage(11.5, 20.0, pid=8).overlap(11.0, 12.0, pid=7) == 0.0
    assert Outage(11.5, 20.0, pid=7).overlap(11.0, 12.0, pid=7) == 0.5


def test_one_slow_checkpoint_does_not_excuse_what_was_repeated() -> None:
    """Guards against a goal that a single accident, 10 s on a machine that was busy, makes impossible to miss."""
    calm = [Cost(100, 1.0 + number / 100, 0.0) for number in range(20)]
    judged = Judgement(
        jobs=1,
        once=1,
        lost=[],
        twice={},
        attempts=3,
        outcomes={},
        repeated=[Cost(100, 1.1, 0.0), Cost(300, 3.0, 2.0), Cost(300, 3.0, 0.0)],
        intervals=[*calm, Cost(100, 10.0, 0.0), Cost(100, 1.0, 0.5)],
    )
    assert judged.interval_seconds == 1.19
    assert judged.over_an_interval == [Cost(300, 3.0, 0.0)]


def test_a_worker_that_cannot_look_is_excused_for_as_long_and_no_longer() -> None:
    """Guards both ways: a jump of the clock that meets a worker that stands still is no second run, and a fault
    somewhere else excuses nothing."""
    span = Together(10.0, 16.0, frozenset({7, 8}))
    assert unexcused(span, []) == 6.0
    assert unexcused(span, [Outage(9.0, 14.0, pid=7)]) == 2.0
    assert unexcused(span, [Outage(9.0, 14.0, pid=99)]) == 6.0
    assert unexcused(span, [Outage(12.0, 13.0)]) == 5.0  # the database, for all workers


def test_a_step_that_falls_within_an_attempt_is_a_new_start_of_its_ranks() -> None:
    """Guards against steps that ranks did twice within one attempt, which no attempt's end would show."""
    again = [Mark(100, False, 20.0), Mark(140, True, 20.5), Mark(150, False, 20.6)]
    assert stretches([*TRACK, *again]) == [TRACK, again]
    assert repeated(TRACK, again[0].step, 8.0, never) == Cost(100, 1.0, 0.0)
    assert stretches(TRACK) == [TRACK]
    assert stretches([]) == [[]]
