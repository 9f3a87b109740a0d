"""Metrics of the tasks with more than one label, against scikit-learn, scipy, seqeval, and SQuAD's own examples."""

from __future__ import annotations

import random
import re
import string
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import f1_score, root_mean_squared_error

from limbeck import evaluate
from limbeck.metrics import METRICS, plain_words, spans

TAGS = ("O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "S-PER", "E-LOC", "E-PER", "S-LOC")


def tag_rows(seed: int, like: list[list[str]] | None = None, kept: float = 0.0) -> list[list[str]]:
    draw = random.Random(seed)
    if like is not None:
        return [[tag if draw.random() < kept else draw.choice(TAGS) for tag in row] for row in like]
    return [draw.choices(TAGS, k=draw.randint(1, 12)) for _ in range(60)]


@pytest.mark.parametrize("seed", range(4))
def test_f1_of_several_labels_is_that_of_scikit_learn(seed: int) -> None:
    """Guards against an F1 over the examples instead of the decisions, and a macro mean without labels never hit."""
    draw = np.random.default_rng(seed)
    truth = draw.random((50, 6)) < 0.3
    truth[:, 5] = False  # a label that never applies, and in some draws is never predicted
    found = np.where(draw.random((50, 6)) < 0.7, truth, draw.random((50, 6)) < 0.3)
    found[:, 5] &= seed % 2 == 0
    for metric, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        expected = f1_score(truth, found, average=average, zero_division=0)
        assert evaluate.score(metric, found.astype(int), truth.astype(int)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_correlations_are_those_of_scipy(seed: int) -> None:
    """Guards against ranks without ties, which STS-B is full of, and numbers with a spread below 1."""
    draw, size = np.random.default_rng(seed), 0.01 if seed == 2 else 1.0
    truth = size * draw.integers(0, 6, 80) / 2 + 1000 * (seed == 1)
    found = np.round(truth + size * draw.normal(0, 1, 80), 1 if seed % 2 else 6)
    assert evaluate.score("pearson", found, truth) == pytest.approx(stats.pearsonr(found, truth).statistic)
    assert evaluate.score("spearman", found, truth) == pytest.approx(stats.spearmanr(found, truth).statistic)
    assert evaluate.score("rmse", found, truth) == pytest.approx(root_mean_squared_error(truth, found))


def test_a_constant_correlates_with_nothing() -> None:
    """Guards against NaN, which would neither select nor refuse a model, for one that always says the same."""
    truth = np.arange(20.0)
    for metric in ("pearson", "spearman"):
        assert evaluate.score(metric, np.full(20, 1 / 3), truth) == 0.0
        assert evaluate.score(metric, truth, np.full(20, 1 / 3)) == 0.0


@pytest.mark.parametrize("metric", ["spearman", "pearson", "micro_f1"])
def test_the_interval_is_that_of_resampling_examples_one_by_one(metric: str) -> None:
    """Guards the weighted ranks and sums: a bootstrap by counts has to be one by repeated examples."""
    draw = np.random.default_rng(1)
    if metric == "micro_f1":
        truth: Any = (draw.random((120, 4)) < 0.4).astype(int)
        found: Any = np.where(draw.random((120, 4)) < 0.8, truth, 1 - truth)
    else:
        truth = draw.integers(0, 5, 120).astype(float)
        found = truth + draw.normal(0, 1.5, 120)
    rows = [draw.integers(0, 120, 120) for _ in range(600)]
    expected = np.quantile([evaluate.score(metric, found[i], truth[i]) for i in rows], (0.025, 0.975))
    estimate = evaluate.bootstrap(metric, found, truth, resamples=3000, seed=3)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.02)
    assert estimate.low < estimate.value < estimate.high


def _some_answers(metric: str, draw: np.random.Generator) -> tuple[Any, Any]:
    """Twelve answers and their truth, the first example far from the others."""
    match metric:
        case "micro_f1" | "macro_f1":
            truth = draw.random((12, 3)) < 0.5
            return np.where(draw.random((12, 3)) < 0.7, truth, ~truth), truth
        case "pearson" | "spearman" | "rmse" | "teacher_cosine":
            numbers = draw.normal(0, 0.1, 12) + 5 * (np.arange(12) == 0)
            return numbers + draw.normal(0, 0.1, 12), numbers
        case "entity_f1" | "entity_precision" | "entity_recall":
            rows = tag_rows(1)[:12]
            return tag_rows(2, rows, 0.8), rows
        case "masked_accuracy" | "perplexity":
            tokens = [draw.integers(0, 3, draw.integers(1, 5)).tolist() for _ in range(12)]
            return [[(int(draw.integers(0, 3)), float(draw.random())) for _ in row] for row in tokens], tokens
        case _:
            words = [" ".join(draw.choice(["red", "green", "blue"], 3)) for _ in range(24)]
            return words[:12], [[one] for one in words[12:]]


@pytest.mark.parametrize("metric", METRICS)
def test_a_figure_over_counts_is_that_over_repeated_examples(metric: str) -> None:
    """Guards every interval: sums that run over all resamples instead of each one's examples leave the value as it is,
    and move the interval."""
    draw = np.random.default_rng(0)
    found, truth = _some_answers(metric, draw)
    counts = draw.multinomial(12, [1 / 12] * 12, size=5).astype(np.float32)
    one = METRICS[metric]
    figures = one.figures(counts, one.columns(found, truth))
    repeated = [np.repeat(np.arange(12), row.astype(int)) for row in counts]
    expected = [evaluate.score(metric, *([column[i] for i in rows] for column in (found, truth))) for rows in repeated]
    assert figures.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 1


@pytest.mark.parametrize("seed", range(30))
def test_entities_are_counted_as_by_seqeval(seed: int) -> None:
    """Guards against another reading of tags out of place: I- after O, a change of type, E- and S-."""
    truth = tag_rows(seed)
    found = tag_rows(seed + 100, truth, 0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "entity_f1": seqeval_f1(truth, found),
            "entity_precision": precision_score(truth, found),
            "entity_recall": recall_score(truth, found),
        }
    for metric, value in expected.items():
        assert evaluate.score(metric, found, truth) == pytest.approx(value), metric


def test_entities_have_their_places() -> None:
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-PER"]
    assert list(spans(tags)) == [("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4), ("PER", 5, 5)]
    assert evaluate.score("entity_precision", [["B-PER"]], [["B-PER"]]) == 1, "a single one counts"


def test_answers_are_compared_as_in_squads_evaluation() -> None:
    """Guards the normalisation (case, punctuation, articles) and the best over several right answers; by hand."""
    assert plain_words("The Panthers' (24–10) an  answer.") == ["panthers", "24–10", "answer"]
    truth = [["Denver Broncos", "The Broncos"], ["in 1492"], ["a horse"]]
    found = ["the broncos!", "1492", "cow"]
    assert evaluate.score("exact_match", found, truth) == pytest.approx(1 / 3)
    assert evaluate.score("answer_f1", ["the"], [["a"]]) == 0, "no word is none in common"
    # 1; of one word out of one and two: 2 · 1 · 0.5 / 1.5; nothing
    assert evaluate.score("answer_f1", found, truth) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_english_answers_are_normalised_as_by_squads_script() -> None:
    """Guards the figures of English data: rules for other scripts may change none of them."""

    def official(text: str) -> list[str]:  # evaluate-v1.1.py, its functions one in another
        bare = "".join(one for one in text.lower() if one not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()).split()

    draw = random.Random(0)
    signs = string.printable + "an the éß–“”…"
    for text in ("The A. N. Other's $1,000.50", *("".join(draw.choices(signs, k=40)) for _ in range(500))):
        assert plain_words(text) == official(text)


def test_chinese_answers_are_compared_by_characters_as_in_cmrcs_evaluation() -> None:
    """Guards against a whole answer as one word: a mark too much, or a character, would leave nothing of it."""
    assert plain_words("《红楼梦》，BERT 第3回。") == ["红", "楼", "梦", "bert", "第", "3", "回"]
    assert plain_words("东京タワー、a·b") == ["东", "京", "タ", "ワ", "ー", "ab"]
    assert plain_words("东京+1$") == ["东", "京", "1"], "signs of ASCII's that Unicode calls symbols"
    truth = [["北京大学"], ["1949年10月"], ["《史记》"], ["a股"]]
    found = ["在北京大学", "1949年", "史记", "股"]
    assert evaluate.score("exact_match", found, truth) == pytest.approx(1 / 4)
    # By hand: 4 of 5 and 4 characters; 1949 and 年 of 2 and 4; all; 股 of 1 and 2.
    assert evaluate.score("answer_f1", found, truth) == pytest.approx((8 / 9 + 4 / 6 + 1 + 2 / 3) / 4)


def test_a_ratio_of_correlations_needs_a_teacher_that_correlates() -> None:
    """Guards against a retention of 120 % where the teacher's own correlation is negative."""
    truth, answers = [1.0, 2.0, 3.0], [3.0, 2.0, 1.5]
    assert evaluate.retention("spearman", student=[3.0, 2.0, 1.0], teacher=answers, labels=truth, seed=1) is None


def test_correlations_are_not_shown_in_per_cent() -> None:
    assert evaluate.shown("spearman", 0.8712) == "0.871"
    assert evaluate.shown("entity_f1", 0.8712) == "87.1 %"
