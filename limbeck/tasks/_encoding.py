"""Splits of the tasks that answer each token, as token ids with what joins tokens to words and characters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.batches import Encoded, end_to_end
from limbeck.data import Split
from limbeck.runtime.windows import Window, Windows

_CHUNK = 2048


def encode_words(
    tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
) -> Encoded:
    """Tokens cut into pieces: the first piece of each carries its tag, the others and special ones carry none."""
    assert split.tokens is not None
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.enable_truncation(max_length)
    ids: list[Sequence[int]] = []
    words: list[NDArray[np.int32]] = []
    tags: list[NDArray[np.int64]] = []
    for start in range(0, len(split), _CHUNK):
        poll()
        rows = slice(start, start + _CHUNK)
        found = backend.encode_batch([list(one) for one in split.tokens[rows]], is_pretokenized=True)
        for coded, known in zip(found, split.labels[rows], strict=True):
            firsts = _first_pieces(coded.word_ids)
            here = np.where(firsts >= 0, np.asarray(known, dtype=np.int64)[firsts], -100)
            if (here == -100).all():
                # Nothing of it is a token for this tokenizer. Metrics pass it by; a batch of it alone has a label.
                here[0] = labels.index("O")
            ids.append(coded.ids)
            words.append(firsts)
            tags.append(here)
    return Encoded(
        end_to_end(ids, np.int32),
        None,
        np.concatenate(([0], np.cumsum([len(row) for row in ids]))).astype(np.int64),
        np.concatenate(tags),
        per_token=True,
        places=np.concatenate(words),
        facts={"tags": [[labels[tag] for tag in row] for row in split.labels]},
        strings=labels,
    )


def _first_pieces(words: Sequence[int | None]) -> NDArray[np.int32]:
    """The number of the word that each piece begins; -1 for the others."""
    whole = np.array([-1 if word is None else word for word in words], dtype=np.int32)
    begins = np.concatenate(([True], whole[1:] != whole[:-1]))
    return np.where(begins, whole, -1).astype(np.int32)


def encode_windows(tokenizer: Any, split: Split, max_length: int, poll: Callable[[], None]) -> Encoded:
    """Questions with their contexts in windows; a window without the whole answer points at its first token."""
    assert split.pairs is not None
    cutter = Windows(tokenizer.backend_tokenizer, max_length)
    windows: list[Window] = []
    owners: list[int] = []
    spans: list[tuple[int, int]] = []
    for first in range(0, len(split), _CHUNK):
        poll()
        rows = slice(first, first + _CHUNK)
        for place, each in enumerate(cutter.encode(split.texts[rows], split.pairs[rows]), start=first):
            text, at = split.labels[place][0]
            start, end = at + len(text) - len(text.lstrip()), at + len(text.rstrip())  # places have no blanks
            windows += each
            owners += [place] * len(each)
            spans += [_answer_tokens(window.places, start, end) for window in each]
    contexts = {context: place for place, context in enumerate(dict.fromkeys(split.pairs))}
    # Of windows behind the first, tokenizers tell of types also where the model knows a single one.
    typed = "token_type_ids" in tokenizer.model_input_names
    types = end_to_end([window.types for window in windows], np.int8) if typed else None
    return Encoded(
        end_to_end([window.ids for window in windows], np.int32),
        types if types is not None and types.any() else None,
        np.concatenate(([0], np.cumsum([len(window) for window in windows]))).astype(np.int64),
        np.asarray(spans, dtype=np.int64),
        per_token=True,
        owners=np.asarray(owners, dtype=np.int64),
        places=np.concatenate([window.places for window in windows]),
        facts={
            "answers": [[text for text, _ in answers] for answers in split.labels],
            "context": [contexts[context] for context in split.pairs],
        },
        strings=list(contexts),
    )


def _answer_tokens(places: NDArray[np.int32], start: int, end: int) -> tuple[int, int]:
    """The first and last token of the characters from ``start`` to ``end``; (0, 0) where not all of them are here."""
    inside = np.flatnonzero(places[:, 1] >= 0)
    within = inside[(places[inside, 1] > start) & (places[inside, 0] < end)]
    if not len(within) or places[inside[0], 0] > start or places[inside[-1], 1] < end:
        return 0, 0
    return int(within[0]), int(within[-1])
