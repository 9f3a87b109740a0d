"""Questions with contexts that are longer than a model reads: overlapping windows, and the best span over all of them.

Training and serving share this module, so that a student is asked as it was taught.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

#: A question takes at most this share of ``max_length``, and so do the tokens that two windows share.
_SHARE = 4
#: Tokens of the longest answer, as in the published SQuAD scripts.
LONGEST_ANSWER = 30
#: Candidates that the probabilities are spread over.
N_BEST = 20


@dataclass(frozen=True, slots=True)
class Window:
    """A question with a part of its context, as tokens; :attr:`empty` where none of them is of the context."""

    ids: Sequence[int]
    types: Sequence[int]
    places: NDArray[np.int32]  # (tokens, 2): characters of the context; -1 outside it, and of what is blank there

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def empty(self) -> bool:
        return not (self.places[:, 1] >= 0).any()


@dataclass(frozen=True, slots=True)
class Span:
    """A candidate answer."""

    start: int  #: character of the context
    end: int  #: behind the last one
    score: float  #: logit of the start and of the end


class Windows:
    """A tokenizer that cuts contexts; encoding from several threads at once is safe.

    Args:
        tokenizer: is copied.
        max_length: tokens of a window, special ones included.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._short: Tokenizer = copy.deepcopy(tokenizer)
        self._short.no_padding()
        self._short.enable_truncation(max(1, max_length // _SHARE))
        self._whole: Tokenizer = copy.deepcopy(tokenizer)
        self._whole.no_padding()
        # Windows have to get on: of a short one special tokens and the question leave little room.
        room = max_length - max_length // _SHARE - self._whole.num_special_tokens_to_add(True)
        stride = max(0, min(max_length // _SHARE, room - 1))
        self._whole.enable_truncation(max_length, stride=stride, strategy="only_second")

    def encode(self, questions: Sequence[str], contexts: Sequence[str]) -> list[list[Window]]:
        """The windows of each question, in order; a question that is too long loses its end."""
        shorts = self._short.encode_batch(list(questions), add_special_tokens=False)
        cut = [
            text[: one.offsets[-1][1]] if one.overflowing else text for text, one in zip(questions, shorts, strict=True)
        ]
        found = self._whole.encode_batch(list(zip(cut, contexts, strict=True)))
        return [
            [_window(one, context) for one in (first, *first.overflowing)]
            for first, context in zip(found, contexts, strict=True)
        ]


def _window(coded: object, context: str) -> Window:
    ids, types, kinds, offsets = (getattr(coded, name) for name in ("ids", "type_ids", "sequence_ids", "offsets"))
    places = np.full((len(ids), 2), -1, dtype=np.int32)
    inside = [place for place, kind in enumerate(kinds) if kind == 1]
    if inside:
        places[inside] = [_without_blank(context, *offsets[place]) for place in inside]
        if not context.isascii():
            places[inside, 1] = [_with_marks(context, end) for end in places[inside, 1].tolist()]
    return Window(ids, types, places)


def _without_blank(context: str, start: int, end: int) -> tuple[int, int]:
    """Without the blank before a word, which DeBERTa's and ModernBERT's tokenizers count as a character of it: no
    answer begins there. What is blank altogether is no place of an answer."""
    while start < end and context[start].isspace():
        start += 1
    return (start, end) if start < end else (-1, -1)


def _with_marks(context: str, end: int) -> int:
    """Behind what is written on the last character: a tokenizer that strips accents counts no mark of its own, and
    ``नमस्ते`` would lose its vowel."""
    while 0 < end < len(context) and unicodedata.category(context[end]).startswith("M"):
        end += 1
    return end


def best_spans(windows: Sequence[tuple[NDArray[np.float32], NDArray[np.int32]]], most: int = N_BEST) -> list[Span]:
    """The likeliest spans of a context, best first.

    Args:
        windows: for each window its logits of start and end, (tokens, 2), and its places, (tokens, 2).
    """
    found: list[Span] = []
    for logits, places in windows:
        inside = np.flatnonzero(places[:, 1] >= 0)
        if not len(inside):
            continue
        starts, ends = logits[inside, 0], logits[inside, 1]
        width = min(LONGEST_ANSWER, len(inside))
        scores = np.full((width, len(inside)), -np.inf)  # (tokens of the answer - 1, start)
        for more in range(width):
            scores[more, : len(inside) - more] = starts[: len(inside) - more] + ends[more:]
        flat = np.argsort(-scores, axis=None, kind="stable")[:most]
        for more, start in zip(*np.unravel_index(flat, scores.shape), strict=True):
            score = float(scores[more, start])
            last = min(start + more, len(inside) - 1)
            if np.isfinite(score):
                found.append(Span(int(places[inside[start], 0]), int(places[inside[last], 1]), score))
    return merged(found, most)


def merged(spans: Iterable[Span], most: int = N_BEST) -> list[Span]:
    """The likeliest of several windows' spans, each once, best first."""
    found: dict[tuple[int, int], Span] = {}
    for one in spans:
        place = one.start, one.end
        if place not in found or one.score > found[place].score:
            found[place] = one
    return sorted(found.values(), key=lambda one: (-one.score, one.start, one.end))[:most]


def named(spans: Sequence[Span], context: str, most: int) -> list[dict[str, Any]]:
    """``[{"score", "start", "end", "answer"}, …]`` of the first ``most``; the scores of all sum to 1."""
    return [
        {"score": float(score), "start": one.start, "end": one.end, "answer": context[one.start : one.end]}
        for one, score in zip(spans[:most], probabilities(spans)[:most], strict=True)
    ]


def probabilities(spans: Sequence[Span]) -> NDArray[np.float64]:
    """Shares of the candidates, which sum to 1."""
    scores = np.array([span.score for span in spans], dtype=np.float64)
    raised = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = raised / raised.sum()
    return shares
