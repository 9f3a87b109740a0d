"""What a loaded data set is: three splits of texts with labels from one ordered list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Split:
    """Examples, column by column; the columns have the same length."""

    texts: list[str]
    pairs: list[str] | None  #: the second texts, where the task is about pairs
    labels: list[int]  #: places in the corpus' labels

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Iterable[int]) -> Split:
        """The examples at these places, in this order."""
        chosen = list(rows)
        return Split(
            [self.texts[row] for row in chosen],
            None if self.pairs is None else [self.pairs[row] for row in chosen],
            [self.labels[row] for row in chosen],
        )

    def keys(self) -> list[tuple[str, str | None]]:
        """What makes two examples the same text: the label left out."""
        pairs: Sequence[str | None] = self.pairs if self.pairs is not None else [None] * len(self)
        return list(zip(self.texts, pairs, strict=True))


@dataclass(frozen=True, slots=True)
class Corpus:
    """A data set that is ready to learn from: every label of test and validation stands in train."""

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    source: str
    sha256: str  #: of the normalised splits; the same data has the same hash in whatever form it came
    revision: str | None = None  #: the hub's commit
    notes: tuple[str, ...] = ()  #: what was done to the data, in sentences

    def with_train(self, train: Split) -> Corpus:
        """The same with another training split, hashed anew."""
        changed = replace(self, train=train)
        return replace(changed, sha256=content_hash(changed.labels, changed.train, changed.validation, changed.test))


def content_hash(labels: Sequence[str], *splits: Split) -> str:
    """sha256 over labels and splits as canonical JSON lines."""
    digest = hashlib.sha256(json.dumps(list(labels), ensure_ascii=False).encode())
    for split in splits:
        digest.update(b"\x00split\n")
        for (text, pair), label in zip(split.keys(), split.labels, strict=True):
            digest.update(json.dumps([text, pair, labels[label]], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
