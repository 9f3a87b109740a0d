"""A workbench for tests of the training loop: a tiny teacher, its student and real texts, without the phases around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from transformers import AutoTokenizer, PreTrainedModel

from limbeck.batches import Collator, Encoded, encode
from limbeck.callbacks import Callbacks, Stage
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.data.corpus import Split
from limbeck.device import seed_everything
from limbeck.methods.base import Method, Models, SpecialTokens
from limbeck.methods.none import FineTuning
from limbeck.phase import Phase
from limbeck.progress import Item
from limbeck.pruning import Part, head_importance, neuron_importance
from limbeck.run import Run
from limbeck.students import Blueprint
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.vocabulary import Vocabulary
from tests.tiny import write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking", "numbers")
TASK = SequenceClassification()


class Recorder(Callbacks):
    """Keeps what the engine says; stops it when ``stop_after`` questions were asked, but not in its last stage."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.asked = 0
        self.points: list[tuple[int, dict[str, float]]] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.percents: list[float] = []
        self.counted: list[tuple[int, int]] = []  #: steps done, and all of them
        self.stages: list[Stage] = []
        self.checkpoints = 0

    def on_stage(self, stage: Stage) -> None:
        self.stages.append(stage)

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.points.append((step, dict(values)))

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, message, dict(data)))

    def on_progress(self, progress: Any) -> None:
        self.percents.append(progress.percent)
        self.counted.append((progress.step, progress.total_steps))

    def on_checkpoint(self, checkpoint: Any) -> None:
        self.checkpoints += 1

    def should_stop(self) -> bool:
        self.asked += 1
        if self.stop_after is None or self.stages[-1:] == [Stage.EXPORTING]:
            return False
        return self.asked > self.stop_after


def is_mapped(address: int, path: Path) -> bool:
    """Whether what lies there in this process' memory is a file's; Linux alone says so."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, end = (int(one, 16) for one in span.split("-"))
        if first <= address < end:
            return Path(name) == path
    return False


@dataclass(frozen=True)
class Bench:
    """A teacher's blueprint and encoded data."""

    folder: Path
    blueprint: Blueprint
    train: Encoded
    validation: Encoded

    @classmethod
    def make(cls, folder: Path, *, rows: int = 48) -> Bench:
        teacher = write_tiny_bert(folder / "teacher", labels=LABELS)
        data = write_tiny_dataset(folder / "data", rows=rows, labels=LABELS)
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        splits = [encode(tokenizer, _split(data / f"{name}.parquet"), 48) for name in ("train", "validation")]
        vocabulary = Vocabulary.of(
            splits, special=tokenizer.all_special_ids, pad_id=tokenizer.pad_token_id, full_size=len(tokenizer)
        )
        blueprint = Blueprint.read(teacher, TASK, LABELS, vocabulary)
        return cls(folder, blueprint, *(vocabulary.compact(split) for split in splits))

    def teacher(self) -> PreTrainedModel:
        return self.blueprint.load_teacher(keep_head=True).eval().requires_grad_(False)

    def student(self) -> PreTrainedModel:
        return self.blueprint.cut(self.teacher().state_dict(), (1, 3))

    def tokens(self) -> SpecialTokens:
        places = {int(full): place for place, full in enumerate(self.blueprint.vocabulary.kept)}
        return SpecialTokens(places.get(4, 0), tuple(places[full] for full in range(5) if full in places))

    def importance(self, part: Part) -> torch.Tensor:
        model, criterion = self.teacher(), Criterion(self.blueprint.task)
        batch = Collator(self.train, model.config.pad_token_id or 0, torch.device("cpu"))(np.arange(len(self.train)))
        return {"neurons": neuron_importance, "heads": head_importance}[part](
            model, [batch], lambda one, texts: criterion.hard(criterion.logits(one(**texts.inputs)), texts).value
        )

    def models(self, student: PreTrainedModel | None = None) -> Models:
        return Models(student or self.student(), self.teacher, (1, 3), self.tokens, importance=self.importance)

    def phase(self, method: Method | None = None, **changes: Any) -> Phase:
        logits = torch.randn(len(self.train), len(LABELS), generator=torch.Generator().manual_seed(0))
        phase = Phase(
            name="distilling",
            method=method or FineTuning(),
            task=TASK,
            models=self.models(),
            train=self.train,
            validation=self.validation,
            teacher_logits=logits,
            epochs=2,
            learning_rate=1e-3,
            batch_size=8,
            gradient_accumulation=1,
            warmup_ratio=0.1,
            weight_decay=0.01,
            seed=3,
        )
        return replace(phase, **changes)

    def run(self, workdir: Path, phase: Phase, callbacks: Callbacks | None = None, *, every: float = 60) -> Run:
        config = DistillConfig.parse({"teacher": f"path:{self.folder}", "dataset": f"path:{self.folder}"})
        seed_everything(0)
        run = Run(config, workdir, callbacks or Callbacks(), every)
        run.meter.plan({phase.name: Item(Stage.DISTILLING, 1e9)}, phase.steps)
        return run


def _split(path: Path) -> Split:
    table = pyarrow.parquet.read_table(path).to_pydict()
    return Split(texts=table["text"], pairs=None, labels=[LABELS.index(label) for label in table["label"]])


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
