"""A question in parts that are answered apart, and their answers put together.

A context of more windows than a part may have is cut into pieces, so that no question is one long call. The parts of a
comparison are answered with vectors, which are compared when all are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from limbeck.runtime.inputs import Question
from limbeck.runtime.windows import Span, merged, named


def parts(question: Question, size: int) -> list[Question]:
    """The same in parts of at most ``size`` rows, for :func:`joined`."""
    if question.rows <= size:
        return [question]
    if question.windows is None:
        whole = replace(question, piece="more follow") if question.form == "compared" else question
        return [_part(whole, start, start + size) for start in range(0, len(question), size)]
    found: list[Question] = []
    begin = rows = 0
    for place, windows in enumerate(question.windows):
        if rows and rows + len(windows) > size:
            found.append(_part(question, begin, place))
            begin, rows = place, 0
        rows += len(windows)
        if rows > size:
            found += _pieces(_part(question, place, place + 1), windows, size)
            begin, rows = place + 1, 0
    return [*found, _part(question, begin, len(question))] if rows else found


def joined(parts: Sequence[Question], answers: Sequence[Any]) -> Any:
    """The answer to a question from those to its :func:`parts`."""
    if len(answers) == 1:
        return answers[0]
    if parts[0].form == "compared":
        return similarities([vector for vectors in answers for vector in vectors])
    found: list[Any] = []
    spans: list[Span] = []  # of the context whose pieces are being gathered
    for part, answer in zip(parts, answers, strict=True):
        if part.piece is None:
            found += answer
            continue
        spans += answer
        if part.piece == "last":
            found.append(spans_answer(part, 0, merged(spans)))
            spans = []
    return found if parts[0].form == "list" else found[0]


def similarities(vectors: Sequence[Sequence[float]]) -> list[float]:
    """Cosines of the first vector and each of the others; all have length 1, but for what float32 rounds."""
    found = np.asarray(vectors, dtype=np.float64)
    cosines: list[float] = np.clip(found[1:] @ found[0], -1, 1).tolist()
    return cosines


def spans_answer(question: Question, place: int, spans: Sequence[Span]) -> Any:
    """The answer to the ``place``-th of its questions, from the candidates for it, best first."""
    context = (question.pairs or [])[place]
    if question.top_k is None:
        return named(spans, context, 1)[0]
    return named(spans, context, len(spans) if question.top_k == "all" else question.top_k)


def _part(question: Question, start: int, end: int) -> Question:
    at = slice(start, end)
    return replace(
        question,
        texts=question.texts[at],
        pairs=question.pairs and question.pairs[at],
        pictures=question.pictures and question.pictures[at],
        tokens=question.tokens and question.tokens[at],
        windows=question.windows and question.windows[at],
    )


def _pieces(one: Question, windows: list[Any], size: int) -> list[Question]:
    starts = range(0, len(windows), size)
    return [
        replace(one, windows=[windows[at : at + size]], piece="last" if at == starts[-1] else "more follow")
        for at in starts
    ]
