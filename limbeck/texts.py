"""The texts of a job's training and validation examples as a tensor, so that its state holds them beside the token ids.

A person who looks at hard samples wants to read what the data set says; token ids give back a lower-cased, cut text,
and the data set itself may be out of reach when a job goes on elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Characters that are kept of a text.
LONGEST = 500


@dataclass(frozen=True, slots=True)
class Shown:
    """An example as a person reads it."""

    text: str
    text_pair: str | None
    label: str


def shown(
    texts: Sequence[Any], pairs: Sequence[Any] | None, labels: Sequence[Any], names: Sequence[str]
) -> list[Shown]:
    """The examples of a split.

    Args:
        texts: strings, or lists of tokens.
        labels: whatever the task has: a place in ``names``, several of them, a number, answers with their texts, or
            nothing.
        names: the data set's labels.
    """
    others = pairs if pairs is not None else [None] * len(texts)
    return [
        Shown(_cut(text), None if other is None else _cut(other), _label(label, names))
        for text, other, label in zip(texts, others, labels, strict=True)
    ]


def pack(splits: Mapping[str, Sequence[Shown]]) -> Tensor:
    """(bytes,) of uint8"""
    rows = {name: [[one.text, one.text_pair, one.label] for one in split] for name, split in splits.items()}
    return torch.from_numpy(np.frombuffer(json.dumps(rows, ensure_ascii=False).encode(), dtype=np.uint8).copy())


def unpack(packed: Tensor) -> dict[str, list[Shown]]:
    """What :func:`pack` was given."""
    rows = json.loads(packed.numpy().tobytes())
    return {name: [Shown(*one) for one in split] for name, split in rows.items()}


def shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _cut(text: Any) -> str:
    return shorten(text if isinstance(text, str) else " ".join(map(str, text)), LONGEST)


def _label(label: Any, names: Sequence[str]) -> str:
    if label is None:
        return ""
    if isinstance(label, int):
        return names[label]
    if isinstance(label, float):
        return f"{label:g}"
    parts = [str(one[0]) if isinstance(one, list | tuple) else _label(one, names) for one in label]
    return shorten(", ".join(parts), LONGEST)
