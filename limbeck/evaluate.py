"""How good a model's answers are, and how sure that is: metrics, bootstrap intervals, retention and gap recovery.

Needs numpy alone. A bootstrap over N examples draws N of them with replacement. Where an example has one label, those
that agree in it and in every model's prediction are the same to a metric, so their counts are drawn at once, from the
multinomial distribution that the draws of single examples would give (Efron & Tibshirani, An Introduction to the
Bootstrap, 1993). Other tasks' examples are drawn one by one (``limbeck/metrics.py``).
All models of a comparison share the resamples: what is hard for all of them cancels out of a ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck import metrics
from limbeck.scorecard import NO_SHARES, Estimate

RESAMPLES = 1_000
#: A teacher that beats the baseline by less (as a share of 1) leaves no gap that could be divided by.
SMALLEST_GAP = 0.005

#: Of a baseline that is above its teacher by more than chance.
_PASSED = (
    " By the labels alone the baseline has come further than the teacher: one that is fine-tuned for longer may have "
    "more to teach."
)

Counts = NDArray[np.float32]  # (resamples, cells)
Classes = NDArray[np.int64]  # (cells,)
_Metric = Callable[[Counts, Classes, Classes], NDArray[np.float64]]

#: Counts that are held at one time, in numbers; bounds the memory to some 64 MB.
_BLOCK = 1 << 24


def _accuracy(counts: Counts, predictions: Classes, labels: Classes) -> NDArray[np.float64]:
    right = counts @ (predictions == labels).astype(np.float32)
    shares: NDArray[np.float64] = np.divide(right, counts.sum(axis=1), dtype=np.float64)
    return shares


def _macro_f1(counts: Counts, predictions: Classes, labels: Classes) -> NDArray[np.float64]:
    """As scikit-learn: the mean over the classes that occur among labels or predictions; 0 for a class never hit."""
    classes = np.arange(max(predictions.max(), labels.max()) + 1)
    predicted = (predictions[:, None] == classes).astype(np.float32)  # (cells, classes)
    actual = (labels[:, None] == classes).astype(np.float32)
    hits = counts @ (predicted * actual)  # (resamples, classes)
    seen = counts @ (predicted + actual)  # 2 · true positives + false positives + false negatives
    f1 = np.divide(2 * hits, seen, out=np.zeros(seen.shape, dtype=np.float64), where=seen > 0)
    means: NDArray[np.float64] = f1.sum(axis=1) / (seen > 0).sum(axis=1)
    return means


METRICS: Mapping[str, _Metric] = {"accuracy": _accuracy, "macro_f1": _macro_f1}


class Resamples:
    """Bootstrap resamples of test examples, shared by every model that answered them.

    Args:
        labels: the truth for each of N examples: whole numbers from 0 where each has one label, else what the task's
            metrics take (see ``limbeck.tasks``).
        answers: for each model's name its predictions, likewise.

    Raises:
        ValueError: no examples, or lengths that differ.
    """

    def __init__(self, labels: Any, answers: Mapping[str, Any], *, resamples: int = RESAMPLES, seed: int) -> None:
        one_label = _is_classes(labels) and all(map(_is_classes, answers.values()))
        self._judge: _Classes | _Examples = _Classes(labels, answers) if one_label else _Examples(labels, answers)
        self._resamples, self._seed = resamples, seed

    def value(self, metric: str, model: str) -> float:
        """The metric on the examples as they are."""
        return float(self._judge.figures(metric, model, self._judge.observed)[0])

    def values(self, metric: str, models: Iterable[str]) -> dict[str, NDArray[np.float64]]:
        """The metric of each model on each resample, (resamples,)."""
        models = tuple(models)
        # The same seed each time: every metric and every model sees the same resamples.
        draw = np.random.default_rng(self._seed)
        blocks = [
            {model: self._judge.figures(metric, model, counts) for model in models}
            for counts in self._judge.draws(draw, self._resamples)
        ]
        return {model: np.concatenate([block[model] for block in blocks]) for model in models}

    def estimate(self, metric: str, model: str) -> Estimate:
        """The metric with its 95 % percentile interval."""
        return _estimate(self.value(metric, model), self.values(metric, [model])[model])


def _is_classes(column: Any) -> bool:
    array = column if isinstance(column, np.ndarray) else None
    if array is None:
        try:
            array = np.asarray(column)
        except ValueError:  # lists of unlike lengths
            return False
    return array.ndim == 1 and (array.dtype.kind in "iu" or array.size == 0)


class _Classes:
    """Examples with one label each, counted by label and predictions."""

    def __init__(self, labels: ArrayLike, answers: Mapping[str, ArrayLike]) -> None:
        columns = [np.asarray(column, dtype=np.int64) for column in (labels, *answers.values())]
        _require_equal_lengths([len(column) for column in columns])
        cells, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
        self._labels: Classes = cells[0]
        self._answers: dict[str, Classes] = dict(zip(answers, cells[1:], strict=True))
        self.observed: Counts = counts[None].astype(np.float32)

    def figures(self, metric: str, model: str, counts: Counts) -> NDArray[np.float64]:
        return METRICS[metric](counts, self._answers[model], self._labels)

    def draws(self, draw: np.random.Generator, resamples: int) -> Iterator[Counts]:
        total = int(self.observed.sum(dtype=np.float64))
        shares = self.observed[0].astype(np.float64) / total
        for size in _blocks(resamples, len(shares)):
            yield draw.multinomial(total, shares, size=size).astype(np.float32)


class _Examples:
    """Examples that are each their own."""

    def __init__(self, labels: Any, answers: Mapping[str, Any]) -> None:
        _require_equal_lengths([len(labels), *map(len, answers.values())])
        self._labels, self._answers = labels, answers
        self._columns: dict[tuple[Any, str], metrics.Columns] = {}
        self.observed: Counts = np.ones((1, len(labels)), dtype=np.float32)

    def figures(self, metric: str, model: str, counts: Counts) -> NDArray[np.float64]:
        found = metrics.METRICS[metric]
        key = found.columns, model
        if key not in self._columns:
            self._columns[key] = found.columns(self._answers[model], self._labels)
        return found.figures(counts, self._columns[key])

    def draws(self, draw: np.random.Generator, resamples: int) -> Iterator[Counts]:
        count = self.observed.shape[1]
        for size in _blocks(resamples, count):
            rows = draw.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
            yield np.bincount(rows.ravel(), minlength=size * count).reshape(size, count).astype(np.float32)


def _require_equal_lengths(lengths: Sequence[int]) -> None:
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f"labels and predictions have to be of the same N > 0 examples; found {lengths}")


def _blocks(resamples: int, cells: int) -> Iterator[int]:
    rows = max(1, _BLOCK // cells)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


@dataclass(frozen=True, slots=True)
class GapRecovery:
    """How much of what the baseline lacks the distillation won back: (student - baseline) / (teacher - baseline)."""

    estimate: Estimate | None
    note: str | None  #: why there is none, or why it should be read with care


def score(metric: str, predictions: Any, labels: Any) -> float:
    """One metric, e.g. ``accuracy``, as a share of 1."""
    return Resamples(labels, {"model": predictions}, seed=0).value(metric, "model")


def scores(metrics: Sequence[str], predictions: Any, labels: Any) -> dict[str, float]:
    """Several metrics, without intervals."""
    return {metric: score(metric, predictions, labels) for metric in metrics}


def bootstrap(metric: str, predictions: Any, labels: Any, *, resamples: int = RESAMPLES, seed: int) -> Estimate:
    """One metric with its 95 % percentile interval by bootstrap over the examples."""
    return Resamples(labels, {"model": predictions}, resamples=resamples, seed=seed).estimate(metric, "model")


def estimates(
    metrics: Sequence[str], predictions: Any, labels: Any, *, resamples: int = RESAMPLES, seed: int
) -> dict[str, Estimate]:
    """Several metrics with their intervals, as a :class:`~limbeck.scorecard.ModelCard` has them."""
    drawn = Resamples(labels, {"model": predictions}, resamples=resamples, seed=seed)
    return {metric: drawn.estimate(metric, "model") for metric in metrics}


def retention(
    metric: str,
    *,
    student: Any,
    teacher: Any,
    labels: Any,
    resamples: int = RESAMPLES,
    seed: int,
) -> Estimate | None:
    """Student / teacher with its paired 95 % interval; none where the teacher's metric is 0 or below, so that there is
    nothing to retain. The arguments are predictions."""
    drawn = Resamples(labels, {"student": student, "teacher": teacher}, resamples=resamples, seed=seed)
    whole = drawn.value(metric, "teacher")
    if whole <= 0:
        return None
    each = drawn.values(metric, ("student", "teacher"))
    return _estimate(drawn.value(metric, "student") / whole, _ratio(each["student"], each["teacher"]))


def gap_recovery(
    metric: str,
    *,
    student: Any,
    teacher: Any,
    baseline: Any,
    labels: Any,
    resamples: int = RESAMPLES,
    seed: int,
) -> GapRecovery:
    """(student - baseline) / (teacher - baseline) with its paired interval, or why that figure would mean nothing."""
    answers = {"student": student, "teacher": teacher, "baseline": baseline}
    drawn = Resamples(labels, answers, resamples=resamples, seed=seed)
    start = drawn.value(metric, "baseline")
    gap = drawn.value(metric, "teacher") - start
    each = drawn.values(metric, answers)
    gaps = each["teacher"] - each["baseline"]
    low, high = _interval(gaps)
    if gap <= SMALLEST_GAP:
        side, least = "above" if gap >= 0 else "below", _points(metric, SMALLEST_GAP)
        passed = "" if gap >= 0 or high >= 0 else _PASSED
        return GapRecovery(
            None,
            f"The teacher's {metric} is {_points(metric, abs(gap))} {side} that of the baseline, the same student "
            f"trained without a teacher; with no more than {least} above it there is no gap to recover.{passed}",
        )
    recovered = _ratio(each["student"] - each["baseline"], gaps)
    note = None
    if low <= 0:
        note = (
            f"Read with care: the gap between teacher and baseline is {_points(metric, gap)}, but its 95 % interval"
            f" ({_points(metric, low, '+')} to {_points(metric, high, '+')}) includes 0, so that the quotient may be "
            "anything."
        )
    return GapRecovery(_estimate((drawn.value(metric, "student") - start) / gap, recovered), note)


def majority(labels: ArrayLike) -> float:
    """The share of the most common class: what guessing gets."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float(counts.max() / counts.sum())


def shown(metric: str, value: float) -> str:
    """A figure as people read it: shares in per cent, correlations and errors as they are."""
    return f"{value:.3f}" if metric in NO_SHARES else f"{100 * value:.1f} %"


def _points(metric: str, difference: float, sign: str = "") -> str:
    """Between two figures as :func:`shown` has them."""
    return f"{difference:{sign}.3f}" if metric in NO_SHARES else f"{100 * difference:{sign}.1f} points"


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients of the resamples that have one."""
    defined = below != 0
    quotients: NDArray[np.float64] = above[defined] / below[defined]
    return quotients


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _estimate(value: float, values: NDArray[np.float64]) -> Estimate:
    low, high = _interval(values)
    return Estimate(value=value, low=low, high=high)
