"""Metrics as numbers of each example, and a figure of them over examples that count more or less often.

So a bootstrap draws how often each example counts, and no answer is judged twice. What an example contributes:

=========================  ==========================================================================================
micro F1, F1 by entity     its true positives, what was predicted, and what is true; a quotient of their sums
macro F1 (several labels)  the same for each label, as scikit-learn: also of labels that never occur, whose F1 is 0
correlations, RMSE         its prediction and its true number
masked accuracy, and       how many of its hidden tokens are found, how many there are; the sum of their losses, and
perplexity                 their number
teacher cosine             the cosine of its vector with the teacher's
exact match, answer F1     its score, as in SQuAD's official script: the best over the answers that count as right;
                           where there are ideographs each is a word, as in CMRC 2018's
=========================  ==========================================================================================

Needs numpy alone.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.ideographs import IDEOGRAPH

Counts = NDArray[np.float32]  # (resamples, examples)
Columns = NDArray[np.float64]  # (examples, numbers of each)
Figures = NDArray[np.float64]  # (resamples,)


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric is counted."""

    columns: Callable[[Any, Any], Columns]  #: of predictions and truth
    figures: Callable[[Counts, Columns], Figures]


def _sums(counts: Counts, columns: Columns) -> NDArray[np.float64]:
    return counts.astype(np.float64) @ columns


def _quotient(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where nothing can be divided, as scikit-learn and seqeval have it."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


# Counts of what is right: columns hits, predicted, actual.


def _f1(counts: Counts, columns: Columns) -> Figures:
    sums = _sums(counts, columns)
    return _quotient(2 * sums[:, 0], sums[:, 1] + sums[:, 2])


def _precision(counts: Counts, columns: Columns) -> Figures:
    sums = _sums(counts, columns)
    return _quotient(sums[:, 0], sums[:, 1])


def _recall(counts: Counts, columns: Columns) -> Figures:
    sums = _sums(counts, columns)
    return _quotient(sums[:, 0], sums[:, 2])


def _decisions(predictions: Any, truth: Any) -> Columns:
    predicted, actual = np.asarray(predictions, dtype=bool), np.asarray(truth, dtype=bool)  # (examples, labels)
    return np.stack([(predicted & actual).sum(1), predicted.sum(1), actual.sum(1)], axis=1).astype(np.float64)


def _decisions_by_label(predictions: Any, truth: Any) -> Columns:
    predicted, actual = np.asarray(predictions, dtype=bool), np.asarray(truth, dtype=bool)
    return np.concatenate([predicted & actual, predicted, actual], axis=1).astype(np.float64)


def _mean_f1(counts: Counts, columns: Columns) -> Figures:
    hits, predicted, actual = np.split(_sums(counts, columns), 3, axis=1)  # each (resamples, labels)
    means: Figures = _quotient(2 * hits, predicted + actual).mean(axis=1)
    return means


# Numbers: columns prediction, truth.


def _numbers(predictions: Any, truth: Any) -> Columns:
    return np.stack([np.asarray(predictions), np.asarray(truth)], axis=1).astype(np.float64)


def _pearson(counts: Counts, columns: Columns) -> Figures:
    found, true = (np.broadcast_to(one, counts.shape) for one in columns.T)
    return _correlation(counts, found, true)


def _spearman(counts: Counts, columns: Columns) -> Figures:
    found, true = columns.T
    return _correlation(counts, _ranks(counts, found), _ranks(counts, true))


def _correlation(counts: Counts, one: NDArray[np.float64], other: NDArray[np.float64]) -> Figures:
    """Of two (resamples, examples); 0 where one of them is constant, which correlates with nothing."""
    weights = counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)
    # First by a value of its own: where all are the same, nothing is left for rounding to make a spread of.
    one, other = one - one[:, :1], other - other[:, :1]
    one = one - (weights * one).sum(axis=1, keepdims=True)
    other = other - (weights * other).sum(axis=1, keepdims=True)
    spread = np.sqrt((weights * one**2).sum(axis=1) * (weights * other**2).sum(axis=1))
    # A spread of rounding errors alone is none.
    scale = np.abs(one).max(axis=1) * np.abs(other).max(axis=1)
    return _quotient((weights * one * other).sum(axis=1), np.where(spread > 1e-12 * scale, spread, 0))


def _ranks(counts: Counts, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks of values of which each stands as often as its count, (resamples, examples)."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    alike = np.add.reduceat(counts[:, order].astype(np.float64), starts, axis=1)  # (resamples, distinct values)
    ranks = np.cumsum(alike, axis=1) - alike + (alike + 1) / 2
    spread = np.empty(counts.shape, dtype=np.float64)
    spread[:, order] = ranks[:, group]
    return spread


def _rmse(counts: Counts, columns: Columns) -> Figures:
    squares = (columns[:, :1] - columns[:, 1:]) ** 2
    roots: Figures = np.sqrt(_sums(counts, squares)[:, 0] / counts.sum(axis=1, dtype=np.float64))
    return roots


def _cosines(predictions: Any, truth: Any) -> Columns:
    return np.asarray(predictions, dtype=np.float64)[:, None]


# Entities, as seqeval counts them where no scheme is given.


def _entities(predictions: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> Columns:
    rows = []
    for predicted, actual in zip(predictions, truth, strict=True):
        found, true = set(spans(predicted)), set(spans(actual))
        rows.append((len(found & true), len(found), len(true)))
    return np.asarray(rows, dtype=np.float64).reshape(-1, 3)


def spans(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """The entities in a row of tags, as (type, first token, last token).

    As seqeval: an ``I-`` without a beginning begins an entity, and one of another type does so as well.
    """
    kind, start, before = "", -1, "O"
    for place, tag in enumerate((*tags, "O")):
        mark, _, of = tag.partition("-")
        if start >= 0 and (mark in "BSO" or before in "ES" or of != kind):
            yield kind, start, place - 1
            start = -1
        if start < 0 and mark != "O":
            kind, start = of, place
        before = mark


# Answers, as SQuAD's official evaluation counts them, and Chinese and Japanese ones as CMRC 2018's does.

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def _exact(predictions: Sequence[str], truth: Sequence[Sequence[str]]) -> Columns:
    scores = [
        max(float(plain_words(found) == plain_words(one)) for one in answers)
        for found, answers in zip(predictions, truth, strict=True)
    ]
    return np.asarray(scores, dtype=np.float64)[:, None]


def _overlap(predictions: Sequence[str], truth: Sequence[Sequence[str]]) -> Columns:
    scores = [max(_words_f1(found, one) for one in answers) for found, answers in zip(predictions, truth, strict=True)]
    return np.asarray(scores, dtype=np.float64)[:, None]


def plain_words(text: str) -> list[str]:
    """Words in lower case, without ASCII's punctuation and without articles, as SQuAD has it.

    In a text with ideographs or kana each of these is a word, all of Unicode's punctuation goes, and articles stay
    (CMRC 2018, Cui et al. 2019, arXiv:1810.07366).
    """
    if not IDEOGRAPH.search(text):
        bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
        return _ARTICLES.sub(" ", bare).split()
    kept = (one for one in text.lower() if one not in _PUNCTUATION and not unicodedata.category(one).startswith("P"))
    return "".join(f" {one} " if IDEOGRAPH.match(one) else one for one in kept).split()


def _words_f1(found: str, true: str) -> float:
    one, other = plain_words(found), plain_words(true)
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other)) if shared else 0.0


def _mean(counts: Counts, columns: Columns) -> Figures:
    means: Figures = _sums(counts, columns)[:, 0] / counts.sum(axis=1, dtype=np.float64)
    return means


# Hidden tokens, each with the one that is found and the loss of the true one: columns sum, count.


def _found(predictions: Sequence[Sequence[Sequence[float]]], truth: Sequence[Sequence[int]]) -> Columns:
    rows = [
        (sum(one[0] == token for one, token in zip(found, true, strict=True)), len(true))
        for found, true in zip(predictions, truth, strict=True)
    ]
    return np.asarray(rows, dtype=np.float64)


def _losses(predictions: Sequence[Sequence[Sequence[float]]], truth: Sequence[Sequence[int]]) -> Columns:
    rows = [(sum(one[1] for one in found), len(found)) for found in predictions]
    return np.asarray(rows, dtype=np.float64)


def _perplexity(counts: Counts, columns: Columns) -> Figures:
    return np.exp(_precision(counts, columns))


METRICS: Mapping[str, Metric] = {
    "micro_f1": Metric(_decisions, _f1),
    "macro_f1": Metric(_decisions_by_label, _mean_f1),
    "pearson": Metric(_numbers, _pearson),
    "spearman": Metric(_numbers, _spearman),
    "rmse": Metric(_numbers, _rmse),
    "entity_f1": Metric(_entities, _f1),
    "entity_precision": Metric(_entities, _precision),
    "entity_recall": Metric(_entities, _recall),
    "teacher_cosine": Metric(_cosines, _mean),
    "masked_accuracy": Metric(_found, _precision),
    "perplexity": Metric(_losses, _perplexity),
    "exact_match": Metric(_exact, _mean),
    "answer_f1": Metric(_overlap, _mean),
}
"""Those of tasks that have not just one label for each example; theirs are in ``limbeck.evaluate``."""
