"""What the tests of trainings over several devices share: a tiny teacher and its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from limbeck.config import DistillConfig
from tests.tiny import write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")
#: A multiple of neither the batch size nor the number of ranks: the last batch has an example for one rank alone.
ROWS = 85


class House:
    """A tiny teacher and its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = write_tiny_bert(folder / "teacher")
        #: Without dropout, which every rank draws for itself.
        self.sober, self.other = (self._sober(folder / f"sober-{seed}", seed) for seed in (0, 1))
        self.data = write_tiny_dataset(folder / "data", rows=ROWS, labels=LABELS)

    @staticmethod
    def _sober(folder: Path, seed: int) -> Path:
        file = write_tiny_bert(folder, seed=seed) / "config.json"
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | off))
        return folder

    @staticmethod
    def tuned(teacher: Path) -> dict[str, Any]:
        return {"source": f"path:{teacher}", "finetune": {"epochs": 4, "learning_rate": 3e-3}}

    def config(
        self, devices: int, *, training: Mapping[str, Any] = MappingProxyType({}), **changes: Any
    ) -> DistillConfig:
        document = {
            "teacher": self.tuned(self.teacher),
            "dataset": f"path:{self.data}",
            "student": 2,
            "method": "kd",
            "training": {"epochs": 2, "batch_size": 12, "learning_rate": 3e-3, "max_length": 32, "devices": devices}
            | dict(training),
            "evaluation": {"baseline": False, "hard_samples": False},
            "export": [],
        }
        return DistillConfig.parse(document | changes)
