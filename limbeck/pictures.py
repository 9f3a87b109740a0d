"""A split of images, which the one loop, the cache and the measurements take as they take one of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.batches import Encoded, read_only, training_batches
from limbeck.errors import InvalidDataset, InvalidInput, Problem
from limbeck.runtime import images

if TYPE_CHECKING:
    from limbeck.data import Split

_POLLED = 256


@dataclass(frozen=True, slots=True)
class Pictures(Encoded):
    """Images of one size, 8 bits a value; a batch of them is normalised when it is made.

    There are no token ids, but an image counts as so many tokens (``lengths``): a ViT has as many hidden states, and
    work is estimated and batches are bounded by them as they are for texts.
    """

    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 1, 1, 1), np.uint8))
    """(rows, channels, height, width)"""
    table: NDArray[np.float32] = field(default_factory=lambda: np.zeros((1, 256), np.float32))
    """(channels, 256): what each value becomes"""

    @classmethod
    def of(
        cls, pixels: NDArray[np.uint8], table: NDArray[np.float32], places: int, labels: NDArray[np.int64]
    ) -> Pictures:
        """
        Args:
            places: tokens that an image counts as.
        """
        starts = np.arange(len(pixels) + 1, dtype=np.int64) * places
        return cls(np.empty(0, np.int32), None, starts, labels, pixels=pixels, table=table)

    def read(self) -> dict[str, NDArray[Any]]:
        return {"pixels": self.pixels, "table": self.table, "starts": self.starts}

    def inputs(
        self, rows: NDArray[np.int64], mask: NDArray[np.bool_], places: NDArray[np.int64], pad_id: int
    ) -> dict[str, NDArray[Any]]:
        return {"pixel_values": images.normalised(self.pixels[rows], self.table)}

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """As :func:`training_batches`, but no image stands alone behind the last whole batch: batch normalisation has
        no spread of a single one."""
        found = training_batches(self.lengths, batch_size, seed=seed, epoch=epoch)
        alone = next((place for place, rows in enumerate(found) if len(rows) == 1), None)
        if alone is not None and len(found) > 1 and batch_size > 2:
            giver = alone - 1 if alone else 1
            found[alone] = np.concatenate((found[giver][-1:], found[alone]))
            found[giver] = found[giver][:-1]
        return found

    def take(self, examples: Sequence[int] | NDArray[np.int64]) -> Pictures:
        rows = np.asarray(examples, dtype=np.int64)
        starts = np.arange(len(rows) + 1, dtype=np.int64) * self._places
        return replace(self, starts=starts, labels=self.labels[rows], pixels=self.pixels[rows])

    def rows(self) -> list[images.Picture]:
        """Each image for itself, as the runtime and the measurements take them."""
        return [images.Picture(one, self.table, self._places) for one in self.pixels]

    def tensors(self) -> dict[str, Tensor]:
        arrays = {"starts": self.starts, "labels": self.labels, "pixels": self.pixels, "table": self.table}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Pictures:
        arrays = {name: read_only(tensor) for name, tensor in tensors.items()}
        return cls(
            np.empty(0, np.int32),
            None,
            arrays["starts"],
            arrays["labels"],
            pixels=arrays["pixels"],
            table=arrays["table"],
        )

    @property
    def _places(self) -> int:
        return int(self.starts[1] - self.starts[0]) if len(self.starts) > 1 else 1


def encode_pictures(preparation: images.Preparation, split: Split, poll: Callable[[], None]) -> Pictures:
    """Decode a split and bring its images to the model's size.

    Raises:
        InvalidDataset: an image cannot be decoded; it is named.
    """
    assert split.images is not None
    pixels = np.empty((len(split), preparation.channels, preparation.height, preparation.width), dtype=np.uint8)
    for row, data in enumerate(split.images):
        if row % _POLLED == 0:
            poll()
        try:
            pixels[row] = preparation.pixels(images.opened(data))
        except InvalidInput as error:
            detail = f"{split.texts[row]}: {error.message}"
            raise InvalidDataset(detail, [Problem("/dataset/source", detail)]) from error
    labels = np.asarray(split.labels, dtype=np.int64)
    return Pictures.of(pixels, preparation.table(), preparation.places, labels)
