"""Where the tests of whole jobs have a tiny teacher and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.config import DistillConfig

LABELS = ("gui", "networking")


@dataclass(frozen=True)
class Place:
    """Where the tiny teacher and data lie."""

    teacher: Path
    data: Path

    def config(self, **changes: Any) -> DistillConfig:
        document: dict[str, Any] = {
            "method": "kd",
            "teacher": {"source": f"path:{self.teacher}", "finetune": {"epochs": 2, "learning_rate": 3e-3}},
            "dataset": {"source": f"path:{self.data}"},
            "student": [1, 3],
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
            "export": [],
        }
        return DistillConfig.parse({**document, **changes})
