"""The figures that a student is judged by, against scikit-learn and against plain resampling."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

from limbeck import evaluate

Ints = NDArray[np.int64]


def answers(right: float, labels: Ints, classes: int, seed: int) -> Ints:
    """Predictions of which about the share ``right`` are true, the rest at random."""
    draw = np.random.default_rng(seed)
    return np.where(draw.random(len(labels)) < right, labels, draw.integers(0, classes, len(labels)))


def some_labels(count: int, classes: int, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(0, classes, count)


@pytest.mark.parametrize("seed", range(6))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    """Guards against a macro F1 that counts classes which never occur, or forgets those that were only predicted."""
    labels = some_labels(40, 5, seed) * 2  # the odd classes have no example …
    predictions = answers(0.5, labels, 12, seed)  # … but some are predicted, and some are neither
    # Either way round: the highest class is one that is predicted only, or one that is never predicted.
    for found, true in ((predictions, labels), (labels, predictions)):
        assert evaluate.score("accuracy", found, true) == pytest.approx(accuracy_score(true, found))
        expected = f1_score(true, found, average="macro", zero_division=0)
        assert evaluate.score("macro_f1", found, true) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_interval_is_that_of_resampling_examples_one_by_one(metric: str) -> None:
    """Guards against the shortcut (counts from the multinomial distribution) giving another interval."""
    labels = some_labels(150, 4)
    predictions = answers(0.6, labels, 4, 1)
    plain: dict[str, Any] = {
        "accuracy": accuracy_score,
        "macro_f1": lambda y, p: f1_score(y, p, average="macro", zero_division=0),
    }
    draw = np.random.default_rng(2)
    drawn = [draw.integers(0, 150, 150) for _ in range(800)]
    low, high = np.quantile([plain[metric](labels[i], predictions[i]) for i in drawn], (0.025, 0.975))
    found = evaluate.bootstrap(metric, predictions, labels, resamples=4000, seed=3)
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("truth", [some_labels(150, 4), some_labels(150, 4) / 2])
def test_every_resample_draws_as_many_examples_as_there_are(truth: Any) -> None:
    """Guards intervals of fewer resamples, or of resamples that share out what belongs to another: both look like an
    interval."""
    drawn = evaluate.Resamples(truth, {"model": truth}, resamples=70, seed=1)
    (counts,) = drawn._judge.draws(np.random.default_rng(1), 70)
    assert counts.sum(axis=1).tolist() == [150] * 70
    assert len({tuple(row) for row in counts.tolist()}) == 70
    metric = "accuracy" if truth.dtype.kind == "i" else "rmse"
    assert len(drawn.values(metric, ["model"])["model"]) == 70


def test_many_examples_are_drawn_in_blocks_that_make_up_all_resamples() -> None:
    """Guards large test splits, whose resamples do not fit into memory at one time."""
    assert list(evaluate._blocks(1_000, 1 << 16)) == [256, 256, 256, 232]
    assert list(evaluate._blocks(3, 1 << 25)) == [1, 1, 1]


def test_the_same_seed_gives_the_same_interval() -> None:
    """Guards against a scorecard that changes when the same job is run again."""
    labels = some_labels(200, 3)
    predictions = answers(0.7, labels, 3, 1)
    once, again, other = (evaluate.bootstrap("accuracy", predictions, labels, seed=seed) for seed in (5, 5, 6))
    assert once == again
    assert once != other


def test_retention_shares_its_resamples() -> None:
    """Guards against unpaired resampling: a student that answers as its teacher keeps exactly all of it."""
    labels = some_labels(100, 3)
    same = answers(0.8, labels, 3, 1)
    found = evaluate.retention("macro_f1", student=same, teacher=same, labels=labels, seed=1)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_interval_of_a_retention_is_around_it() -> None:
    """Guards against teacher / student, whose interval would lie on the other side of 1, and against one of 90 %."""
    labels = some_labels(400, 3)
    student, teacher = answers(0.5, labels, 3, 1), answers(0.9, labels, 3, 2)
    found = evaluate.retention("accuracy", student=student, teacher=teacher, labels=labels, seed=1)
    assert found is not None
    assert 0.5 < found.low < found.value < found.high < 1
    assert evaluate._interval(np.arange(1_001.0)) == pytest.approx((25, 975))


def test_retention_needs_a_teacher_that_gets_something_right() -> None:
    """Guards against a division by zero."""
    assert evaluate.retention("accuracy", student=[0, 1], teacher=[1, 0], labels=[0, 1], seed=1) is None


def test_gap_recovery_is_0_for_the_baseline_and_1_for_the_teacher() -> None:
    """Guards against a numerator or denominator the wrong way round."""
    labels = some_labels(600, 4)
    teacher, baseline = answers(0.9, labels, 4, 1), answers(0.5, labels, 4, 2)
    for student, expected in ((teacher, 1.0), (baseline, 0.0)):
        found = evaluate.gap_recovery(
            "accuracy", student=student, teacher=teacher, baseline=baseline, labels=labels, seed=1
        )
        assert found.note is None
        assert found.estimate is not None
        assert found.estimate.value == found.estimate.low == found.estimate.high == pytest.approx(expected)


def test_no_gap_recovery_where_the_teacher_is_no_better_than_the_baseline() -> None:
    """Guards against a proud figure from a negative gap: a worse student divided by a worse teacher."""
    labels = some_labels(400, 2)
    baseline, teacher = answers(0.9, labels, 2, 1), answers(0.5, labels, 2, 2)
    found = evaluate.gap_recovery(
        "accuracy", student=teacher, teacher=teacher, baseline=baseline, labels=labels, seed=1
    )
    assert found.estimate is None
    assert found.note is not None
    assert "no gap to recover" in found.note
    assert re.match(r"The teacher's accuracy is \d+\.\d points below that of the baseline", found.note)
    assert "fine-tuned for longer" in found.note


def test_a_teacher_is_not_called_unfinished_for_a_difference_by_chance() -> None:
    labels = some_labels(400, 2)
    teacher, baseline = answers(0.9, labels, 2, 1), answers(0.9, labels, 2, 2)
    if (teacher == labels).mean() > (baseline == labels).mean():
        teacher, baseline = baseline, teacher
    found = evaluate.gap_recovery(
        "accuracy", student=teacher, teacher=teacher, baseline=baseline, labels=labels, seed=1
    )
    assert "below that of the baseline" in str(found.note)
    assert "fine-tuned for longer" not in str(found.note)


def test_a_gap_is_told_in_the_unit_of_its_figures() -> None:
    """Guards "9.8 points" under a table whose figures are 0.192 and 0.095."""
    truth, draw = np.arange(60.0), np.random.default_rng(0)
    worse, middling, good = (truth + draw.normal(0, spread, 60) for spread in (90, 30, 25))
    notes = [
        evaluate.gap_recovery("spearman", student=good, teacher=teacher, baseline=baseline, labels=truth, seed=1).note
        for teacher, baseline in ((worse, good), (good, middling))
    ]
    assert re.match(r"The teacher's spearman is 0\.\d{3} below that of .* no more than 0\.005 above it", str(notes[0]))
    assert re.match(r"Read with care: .* is 0\.\d{3}, but its 95 % interval \(-0\.\d{3} to \+0\.\d{3}\)", str(notes[1]))


@pytest.mark.parametrize(("better", "recovered"), [(4, False), (8, True)])
def test_a_gap_is_one_from_half_a_point_on(better: int, recovered: bool) -> None:
    """Guards the constant that says what is too small to divide by: a larger one hides figures, a smaller invents."""
    labels, baseline, teacher = (np.zeros(1_000, dtype=np.int64) for _ in range(3))
    baseline[:100], teacher[: 100 - better] = 1, 1
    found = evaluate.gap_recovery("accuracy", student=labels, teacher=teacher, baseline=baseline, labels=labels, seed=1)
    assert (found.estimate is not None) is recovered


def test_an_uncertain_gap_is_said() -> None:
    """Guards against a quotient that is read as a finding although its denominator may as well be zero."""
    labels = some_labels(60, 2)
    baseline = labels.copy()
    baseline[:10] = 1 - baseline[:10]
    teacher = labels.copy()
    teacher[5:14] = 1 - teacher[5:14]  # one more right than the baseline, by other examples
    found = evaluate.gap_recovery("accuracy", student=labels, teacher=teacher, baseline=baseline, labels=labels, seed=1)
    assert found.estimate is not None
    assert all(np.isfinite([found.estimate.value, found.estimate.low, found.estimate.high]))
    assert found.note is not None
    assert "includes 0" in found.note


def test_a_certain_gap_has_no_note_and_an_interval() -> None:
    """Guards against a note on every card, which nobody would read."""
    labels = some_labels(1500, 6)
    models = {name: answers(right, labels, 6, i) for i, (name, right) in enumerate(_SHARES.items())}
    found = evaluate.gap_recovery("accuracy", labels=labels, seed=1, **models)
    assert found.note is None
    assert found.estimate is not None
    assert 0 < found.estimate.low < found.estimate.value < found.estimate.high < 1


_SHARES = {"student": 0.75, "teacher": 0.9, "baseline": 0.5}


def test_lengths_have_to_agree() -> None:
    """Guards against broadcasting one prediction over all labels."""
    with pytest.raises(ValueError, match="same N"):
        evaluate.score("accuracy", [1], [1, 0, 1])
    with pytest.raises(ValueError, match="N > 0"):
        evaluate.score("accuracy", [], [])
    with pytest.raises(ValueError, match="same N"):
        evaluate.score("teacher_cosine", [0.5], [1.0, 1.0, 1.0])


def test_majority_is_what_guessing_gets() -> None:
    """Guards against the share of the first class, or of the largest label."""
    assert evaluate.majority([2, 2, 2, 9]) == 0.75
