"""Leaving the embedding rows that the data never uses out of the training step, and putting them back.

A step of AdamW touches every row of the embedding table, although a data set of a few thousand texts uses a third of a
vocabulary of 30,000. Rows without a gradient and without weight decay never move, so that training the used rows alone
gives the same weights. (Not where tokens are answered: ``masked_lm`` keeps them all, and ``distilbert`` on other tasks
guesses its masked words among the used ones.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.batches import Encoded


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which token ids are kept; a compact id is the place of the original one in ``kept``."""

    kept: NDArray[np.int64]  # (compact size,), rising
    full_size: int

    @classmethod
    def of(
        cls, splits: Iterable[Encoded], *, special: Iterable[int], pad_id: int, full_size: int, offset: bool = True
    ) -> Vocabulary:
        """The ids that the splits use, and the special ones. With ``offset`` (``Family.offset``) all ids up to the
        padding's stay, so that its id does: RoBERTa's positions hang on it."""
        used: list[NDArray[Any]] = [
            np.arange(pad_id + 1) if offset else np.array([pad_id]),
            np.fromiter(special, dtype=np.int64),
        ]
        for split in splits:
            used += [split.ids, split.labels[split.labels >= 0]] if split.cloze else [split.ids]
        return cls(np.unique(np.concatenate(used)).astype(np.int64), full_size)

    @classmethod
    def whole(cls, full_size: int) -> Vocabulary:
        """Every id: where tokens are what is answered, one that no text uses still has its share of each answer."""
        return cls(np.arange(full_size, dtype=np.int64), full_size)

    def __len__(self) -> int:
        return len(self.kept)

    def place(self, original: int) -> int:
        """The compact id of one that is kept.

        Raises:
            ValueError: it is not kept.
        """
        found = int(np.searchsorted(self.kept, original))
        if found == len(self.kept) or self.kept[found] != original:
            raise ValueError(f"the token {original} is not among the {len(self.kept)} that are kept")
        return found

    def compact(self, split: Encoded) -> Encoded:
        """The same texts in compact ids."""
        return self._renumbered(split, lambda ids: np.searchsorted(self.kept, ids))

    def restore(self, split: Encoded) -> Encoded:
        """The same texts in original ids."""
        return self._renumbered(split, lambda ids: self.kept[ids])

    def _renumbered(self, split: Encoded, new: Callable[[NDArray[Any]], NDArray[Any]]) -> Encoded:
        ids = new(split.ids).astype(np.int32)
        if not split.cloze or split.places is None:
            return replace(split, ids=ids)
        labels, places = split.labels, split.places
        return replace(
            split,
            ids=ids,
            labels=np.where(labels < 0, labels, new(labels.clip(0))),
            places=np.where(places < 0, places, new(places.clip(0))).astype(np.int32),
        )

    def shrink(self, table: Tensor) -> Tensor:
        """``(full_size, width)`` -> ``(compact size, width)``."""
        return table[torch.from_numpy(self.kept)].clone()

    def grow(self, table: Tensor, original: Tensor) -> Tensor:
        """``(compact size, width)`` -> ``(full_size, width)``, the unused rows from ``original``."""
        whole = original.clone()
        whole[torch.from_numpy(self.kept)] = table.to(whole)
        return whole
