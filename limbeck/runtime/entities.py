"""Entities in a text, in the shape of transformers' ``TokenClassificationPipeline`` with an aggregation.

A word's tag is that of its first piece, as it was trained: transformers calls this ``aggregation_strategy="first"``,
but takes each piece that the tokenizer cut at a mark for a word (``O``, ``'``, ``Brien``), also those that no training
ever gave a tag. What a word is here: ``limbeck/runtime/words.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.metrics import spans
from limbeck.runtime.encoding import Coded


def entities(
    text: str,
    coded: Coded,
    scores: NDArray[np.float64],  # (tokens, tags), probabilities
    labels: Sequence[str],
    tokenizer: Any,
) -> list[dict[str, Any]]:
    """``[{"entity_group", "score", "word", "start", "end"}, …]`` in the order of the text.

    ``score`` is the mean of the words' probabilities, ``start`` and ``end`` are characters, of whole words also where
    the last pieces of one did not fit into the longest input. A word without any piece is in no entity, as in the
    evaluation.
    """
    words = _pieces(coded.words)
    best = {word: int(scores[pieces[0]].argmax()) for word, pieces in words.items()}
    found = []
    for kind, first, last in spans([labels[best[word]] if word in best else "O" for word in range(len(coded.spans))]):
        inside = range(first, last + 1)
        each = [_spelled(text, coded, words[word], tokenizer) for word in inside]
        found.append(
            {
                "entity_group": kind,
                "score": float(np.mean([scores[words[word][0], best[word]] for word in inside])),
                "word": tokenizer.decoder.decode(each) if tokenizer.decoder else " ".join(each),
                "start": coded.spans[first][0],
                "end": coded.spans[last][1],
            }
        )
    return found


def _pieces(numbers: Sequence[int | None]) -> dict[int, list[int]]:
    """The places of each word's pieces, by its number."""
    words: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        if number is not None:
            words.setdefault(number, []).append(place)
    return words


def _spelled(text: str, coded: Coded, pieces: Sequence[int], tokenizer: Any) -> str:
    unknown = getattr(tokenizer.model, "unk_token", None)
    tokens = [
        text[slice(*coded.offsets[place])] if coded.tokens[place] == unknown else coded.tokens[place]
        for place in pieces
    ]
    spelled: str = tokenizer.decoder.decode(tokens) if tokenizer.decoder else "".join(tokens)
    return spelled
