"""What a loaded data set is: three splits of examples that one task is learned from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: The task of texts with one label each, which is assumed where nothing is said.
ONE_LABEL = "sequence_classification"
#: The task of texts without anything beside them.
PLAIN = "masked_lm"
IMAGES = "image_classification"
#: The tasks whose examples have one label each, a place in the corpus' labels.
LABELLED_ONCE = (ONE_LABEL, IMAGES)


@dataclass(frozen=True, slots=True)
class Split:
    """Examples, column by column; the columns have the same length.

    What a label is depends on the task:

    =======================  =======================================================================================
    sequence_classification  a place in the corpus' labels
    multi_label              the places of those that apply, rising
    regression               a number
    token_classification     a place for each token
    question_answering       the answers that count as right: (text, character of the context where it starts)
    image_classification     a place in the corpus' labels
    embeddings               how alike the two texts of a pair are, a number; None for texts without a score
    masked_lm                None
    =======================  =======================================================================================
    """

    #: Of token classification the tokens, joined by blanks; the questions of question answering; of images their names.
    texts: list[str]
    pairs: list[str] | None  #: the second texts, where the task is about pairs; the contexts of question answering
    labels: list[Any]
    tokens: list[tuple[str, ...]] | None = None  #: of token classification
    images: list[bytes] | None = None  #: encoded, of image classification

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Iterable[int]) -> Split:
        """The examples at these places, in this order."""
        chosen = list(rows)
        return Split(
            [self.texts[row] for row in chosen],
            None if self.pairs is None else [self.pairs[row] for row in chosen],
            [self.labels[row] for row in chosen],
            None if self.tokens is None else [self.tokens[row] for row in chosen],
            None if self.images is None else [self.images[row] for row in chosen],
        )

    def keys(self) -> list[tuple[str, str | None]]:
        """What makes two examples the same text, or image: the label left out."""
        if self.images is not None:
            return [(hashlib.sha256(image).hexdigest(), None) for image in self.images]
        pairs: Sequence[str | None] = self.pairs if self.pairs is not None else [None] * len(self)
        return list(zip(self.texts, pairs, strict=True))


@dataclass(frozen=True, slots=True)
class Corpus:
    """A data set that is ready to learn from."""

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]  #: the names in their order; none where the task has none
    source: str
    sha256: str  #: of the normalised splits; the same data has the same hash in whatever form it came
    revision: str | None = None  #: the hub's commit
    notes: tuple[str, ...] = ()  #: what was done to the data, in sentences
    task: str = ONE_LABEL  #: the ``type`` of the task that its labels are of

    def with_train(self, train: Split) -> Corpus:
        """The same with another training split, hashed anew."""
        splits = train, self.validation, self.test
        return replace(self, train=train, sha256=content_hash(self.labels, *splits, task=self.task))


def content_hash(labels: Sequence[str], *splits: Split, task: str = ONE_LABEL) -> str:
    """sha256 over labels and splits as canonical JSON lines."""
    digest = hashlib.sha256(json.dumps(list(labels), ensure_ascii=False).encode())
    if task != ONE_LABEL:
        digest.update(task.encode())
    for split in splits:
        digest.update(b"\x00split\n")
        tokens: Sequence[Any] = split.tokens if split.tokens is not None else [text for text, _ in split.keys()]
        pairs: Sequence[str | None] = split.pairs if split.pairs is not None else [None] * len(split)
        for text, pair, label in zip(tokens, pairs, split.labels, strict=True):
            named = labels[label] if task in LABELLED_ONCE else label
            digest.update(json.dumps([text, pair, named], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
