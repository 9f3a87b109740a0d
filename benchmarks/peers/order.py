"""What every trainer is asked for: one training, by the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Trainer = Literal["textbrewer", "textbrewer-cached", "trainer"]
#: As the loop of Limbeck has it.
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Training:
    """The numbers that all trainers share."""

    epochs: int
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    temperature: float = 4.0
    alpha: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class PeerOrder:
    """A training by another trainer than Limbeck."""

    trainer: Trainer
    teacher: Path
    layers: Sequence[int]  #: of the teacher, from 0, that the student starts from
    train: Path  #: a file of :func:`write_tokens`
    training: Training
    held: Mapping[str, Path] = field(default_factory=dict)  #: what the student answers, by name
    every_epoch: bool = False  #: answers after every epoch, rather than after the last one
    matches: Sequence[Mapping[str, Any]] = ()  #: ``layer_S``, ``layer_T``, ``loss``, ``weight``; 0 is the embeddings
    padded_to: int | None = None
    fused: bool = False
    device: str = "cpu"
    entropy: bool = False  #: also tell that of the teacher's softened answers

    def as_json(self) -> dict[str, Any]:
        """For ``benchmarks/peers/inside``."""
        return {
            "trainer": self.trainer,
            "teacher": str(self.teacher),
            "layers": list(self.layers),
            "train": str(self.train),
            **vars(self.training),
            "gradient_norm": GRADIENT_NORM,
            "held": {name: str(path) for name, path in self.held.items()},
            "every_epoch": self.every_epoch,
            "matches": [dict(match) for match in self.matches],
            "padded_to": self.padded_to,
            "fused": self.fused,
            "device": self.device,
            "entropy": self.entropy,
        }


def write_tokens(
    path: Path,
    ids: NDArray[np.int32],  # (tokens,)
    segments: NDArray[np.int8] | None,  # (tokens,); None: all 0
    starts: NDArray[np.int64],  # (examples + 1,)
    labels: NDArray[np.int64],  # (examples,)
) -> Path:
    """Put a split's token ids where the other trainers read them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = np.zeros(len(ids), np.int8) if segments is None else segments
    np.savez(path, ids=ids, segments=kinds, starts=starts, labels=labels)
    return path
