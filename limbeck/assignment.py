"""What one call of the engine is to do, wherever it is done: in this process, in several ranks, in a worker's trainer.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from limbeck.config import DistillConfig


@dataclass(frozen=True, slots=True)
class Assignment:
    """A distillation with all that it reads and writes; the fields are described at :func:`limbeck.engine.distill`."""

    config: DistillConfig
    workdir: Path
    sources: Mapping[str, Path] = field(default_factory=dict)
    checkpoint_seconds: float = 60.0
    expected: Mapping[str, str] = field(default_factory=dict)
    micro_batches: Mapping[str, int] = field(default_factory=dict)
