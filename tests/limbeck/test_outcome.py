"""What a scorecard makes of models' answers: the gate, the gap, and a teacher that guesses; by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.config import Gate
from limbeck.outcome import _gap_recovery, _guessing, _verdict
from limbeck.scorecard import Estimate, Latency
from limbeck.tasks.sequence_classification import SequenceClassification

TASK = SequenceClassification()
KEPT = Estimate(value=0.95, low=0.9, high=1.0)


def timed(size: int, p95: float) -> Latency:
    return Latency(batch_size=size, p50_ms=1.0, p95_ms=p95, examples_per_second=1.0)


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({}, True),
        ({"min_retention": 0.95}, True),
        ({"min_retention": 0.951}, False),
        ({"max_p95_ms": 20}, True),
        ({"max_p95_ms": 19.9}, False),
        ({"min_retention": 0.9, "max_p95_ms": 10}, False),
    ],
)
def test_the_gate_lets_through_who_is_good_and_quick_enough(gate: dict[str, float], passed: bool) -> None:
    """Guards a student that nobody wanted: a gate that compares the other way round, or the time of a whole batch, is
    open, or closed, for everybody."""
    found = _verdict(Gate.model_validate(gate), KEPT, None, (timed(32, 5.0), timed(1, 20.0)))
    assert found.passed is passed
    assert bool(found.reasons) is not passed


def test_the_gate_names_all_that_is_missed() -> None:
    gate = Gate(min_retention=0.97, max_p95_ms=10)
    kept, quick = _verdict(gate, KEPT, None, (timed(1, 20.0),)).reasons
    assert "keeps 95.0% of its teacher; asked for: 97.0%" in kept
    assert "takes 20.0 ms at the 95th percentile; allowed: 10 ms" in quick


@pytest.mark.parametrize("retention", [None, KEPT])
def test_no_student_reaches_a_retention_that_means_nothing(retention: Estimate | None) -> None:
    """Guards against a gate that is passed because the teacher is no better than guessing."""
    found = _verdict(Gate(min_retention=0.5), retention, "The teacher guesses.", (timed(1, 1.0),))
    assert found.reasons == ("A retention of 50.0% was asked for. The teacher guesses.",)


def job_of(labels: list[int]) -> Any:
    return SimpleNamespace(task=TASK, test=SimpleNamespace(labels=np.array(labels)))


def test_the_gap_is_between_the_baseline_and_the_teacher() -> None:
    """Guards the three names: 10 right with the teacher, 6 with the student, 4 with the baseline are a third."""
    labels = [0, 1] * 5
    answers = {name: [*labels[:right], *(1 - one for one in labels[right:])] for name, right in _RIGHT.items()}
    found, note = _gap_recovery(job_of(labels), answers, 1)
    assert found is not None
    assert found.value == pytest.approx(1 / 3)
    assert note is None or "Read with care" in note
    alone, note = _gap_recovery(job_of(labels), {name: answers[name] for name in ("teacher", "student")}, 1)
    assert alone is None
    assert note is not None
    assert "no baseline" in note


_RIGHT = {"baseline": 4, "teacher": 10, "student": 6}


def test_a_teacher_that_guesses_is_told_from_one_that_does_not() -> None:
    labels = [0, 0, 0, 1]
    assert _guessing(job_of(labels), labels) is None
    for guess in ([0, 0, 0, 0], [1, 1, 1, 0]):
        said = _guessing(job_of(labels), guess)
        assert said is not None
        assert "always giving the most common answer has 75.0 %" in said
