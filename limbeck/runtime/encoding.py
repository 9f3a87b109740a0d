"""Texts to token ids to padded batches, as transformers does it, by its tokenizers' Rust library alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from limbeck.errors import InvalidModel
from limbeck.runtime.student import TOKENIZER, StudentFacts
from limbeck.runtime.windows import Windows
from limbeck.runtime.words import Span, words

Feeds = Mapping[str, NDArray[Any]]
"""``input_ids``, ``attention_mask`` and ``token_type_ids``, each (examples, tokens), whole numbers; of images
``pixel_values``, (examples, channels, height, width)."""

#: How much longer than its shortest row the longest of a chunk may be. A CPU computes a text alone about as fast as in
#: a batch, so that padding costs more than company saves: in windows of 4 and 8 sentences of mixed length this is 1.2
#: to 1.5 times as fast as padding them all (docs/performance.md).
STRETCH = 1.25
#: Tokens of a chunk, padding included; more would only fall out of the cache.
FULL = 256


@dataclass(frozen=True, slots=True)
class Row:
    """One example as tokens, not padded."""

    ids: Sequence[int]
    types: Sequence[int]  #: 1 in the second text of a pair

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Coded(Row):
    """A text as tokens that know where they come from."""

    tokens: Sequence[str]
    words: Sequence[int | None]  #: the number of the word that a token is a piece of; None for special ones
    offsets: Sequence[Span]  #: of each token, characters of the text
    spans: Sequence[Span]  #: of each word


class Encoder:
    """A student's tokenizer; encoding from several threads at once is safe."""

    def __init__(self, tokenizer: Tokenizer, facts: StudentFacts) -> None:
        tokenizer.no_padding()
        side = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(facts.max_length, strategy="longest_first", direction=side)
        self.tokenizer = self._tokenizer = tokenizer
        self._max_length = facts.max_length

    @classmethod
    def load(cls, folder: Path, facts: StudentFacts) -> Encoder:
        """One for all students that are in memory with the same file and length, as students of one teacher are.

        Raises:
            InvalidModel: there is no tokenizer.json, or it is broken.
        """
        path = folder / TOKENIZER
        try:
            content = path.read_bytes()
            key = hashlib.sha256(content).digest(), facts.max_length
            with _LOCK:
                found = _LOADED.get(key)
            if found is None:
                # from_file would take the path; its errors do not tell a missing file from a broken one.
                made = cls(Tokenizer.from_str(content.decode("utf-8")), facts)
                with _LOCK:
                    found = _LOADED.setdefault(key, made)
            return found
        except Exception as error:  # the Rust library raises nothing narrower
            raise InvalidModel(f"{path} cannot be used as a tokenizer: {error}") from error

    @cached_property
    def windows(self) -> Windows:
        """What cuts contexts, for students that answer questions; made once, as it takes longer than a small student's
        answer does."""
        return Windows(self.tokenizer, self._max_length)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Row]:
        """Token ids of each text, or pair of texts, cut to the student's ``max_length``."""
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [Row(found.ids, found.type_ids) for found in self._tokenizer.encode_batch_fast(inputs)]

    def trace(self, texts: Sequence[str], known: Sequence[Sequence[Span] | None] | None = None) -> list[Coded]:
        """The :func:`words` of each text in pieces, as lists of tokens are in training, with where each comes from.

        Args:
            known: of each text where its words are, None where they are to be found.
        """
        known = [None] * len(texts) if known is None else known
        spans = [words(text) if own is None else own for text, own in zip(texts, known, strict=True)]
        listed = [[text[start:end] for start, end in each] for text, each in zip(texts, spans, strict=True)]
        found = self._tokenizer.encode_batch(listed, is_pretokenized=True)
        return [
            Coded(one.ids, one.type_ids, one.tokens, one.word_ids, _in_text(one.word_ids, one.offsets, each), each)
            for one, each in zip(found, spans, strict=True)
        ]


def _in_text(numbers: Sequence[int | None], within: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """Of pieces whose characters were counted from the beginning of their word; (0, 0) for special ones."""
    begins = [0 if number is None else spans[number][0] for number in numbers]
    return [(begin + start, begin + end) for begin, (start, end) in zip(begins, within, strict=True)]


#: What :meth:`Encoder.load` made and somebody holds, by the file's sha256 and the length.
_LOADED: WeakValueDictionary[tuple[bytes, int], Encoder] = WeakValueDictionary()
_LOCK = threading.Lock()


def pad(rows: Sequence[Row], pad_id: int) -> Feeds:
    """One batch, as long as its longest row."""
    shape = len(rows), max(map(len, rows))
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    types = np.zeros(shape, dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row.ids
        mask[place, : len(row)] = 1
        types[place, : len(row)] = row.types
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def chunks(lengths: Sequence[int]) -> Iterator[NDArray[np.int64]]:
    """Places of rows to run together: every one once, sorted by length, so that little is padded."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        last = end == len(order)
        longest = 0 if last else lengths[order[end]]
        if last or longest > STRETCH * lengths[order[start]] or longest * (end + 1 - start) > FULL:
            yield order[start:end]
            start = end
