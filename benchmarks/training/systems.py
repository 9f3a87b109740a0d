"""The trainers, and what each is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.asking import Worker
from benchmarks.peers.order import PeerOrder, Trainer, Training
from benchmarks.training.files import Part
from benchmarks.training.workloads import Workload


@dataclass(frozen=True)
class System:
    """One row of the tables; ``trainer`` is None for Limbeck."""

    name: str
    title: str
    trainer: Trainer | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether the teacher's answers are computed once."""
        return self.trainer in (None, "textbrewer-cached")


SYSTEMS: Mapping[str, System] = {
    one.name: one
    for one in (
        System("limbeck", "Limbeck"),
        # Fused AdamW is the Trainer's own default; TextBrewer's examples have the plain one.
        System("trainer", "HF Trainer, teacher in `compute_loss`, dynamic padding", "trainer", {"fused": True}),
        System("textbrewer", "TextBrewer GeneralDistiller, dynamic padding", "textbrewer"),
        System("textbrewer-fused", "the same with fused AdamW", "textbrewer", {"fused": True}),
        System("textbrewer-padded", "TextBrewer as its examples: padded to 128", "textbrewer", {"padded_to": 128}),
        System("textbrewer-cached", "TextBrewer BasicDistiller, cached logits", "textbrewer-cached"),
    )
}


@dataclass(frozen=True)
class Workers:
    """The two processes that train."""

    ours: Worker
    peers: Worker

    def ask(
        self,
        system: System,
        workload: Workload,
        teacher: Path,
        part: Part,
        training: Training,
        *,
        held: bool = False,
        device: str = "cpu",
        entropy: bool = False,
    ) -> dict[str, Any]:
        """One training by one system; ``held``: the student then answers the part's test split.

        Raises:
            OrderFailed: it ended with an error.
        """
        asked = {"test": part.tokens["test"]} if held else {}
        if system.trainer is None:
            files = {name: str(path) for name, path in asked.items()}
            return self.ours.ask({"config": _job(workload, teacher, part, training), "held": files})
        order = PeerOrder(
            trainer=system.trainer,
            teacher=teacher,
            layers=workload.layers,
            train=part.tokens["train"],
            training=training,
            held=asked,
            matches=workload.matches,
            device=device,
            entropy=entropy,
            **system.settings,
        )
        return self.peers.ask(order.as_json())


def _job(workload: Workload, teacher: Path, part: Part, training: Training) -> dict[str, Any]:
    numbers = dict(vars(training))
    softness = {name: numbers.pop(name) for name in ("temperature", "alpha")}
    splits = {name: name for name in ("train", "validation", "test")}
    return {
        "teacher": {"source": f"path:{teacher}", "finetune": False},
        "dataset": {"source": f"path:{part.folder}", "splits": splits},
        "student": {"layers": list(workload.layers)},
        "method": {**workload.method, **softness},
        "training": {**numbers, "max_length": workload.max_length},
        "evaluation": {"baseline": False, "hard_samples": False},
        "export": [],
    }
