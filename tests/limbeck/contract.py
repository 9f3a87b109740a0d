"""What a method promises in a task of a family: two steps, a folder, and plain transformers' answers from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

import limbeck.config
from limbeck import data
from limbeck.batches import Collator, Encoded
from limbeck.config import TASKS, Dataset, Student
from limbeck.data.corpus import Split
from limbeck.loop import train
from limbeck.methods.base import Method, SpecialTokens
from limbeck.preflight import serves
from limbeck.shapes import offers
from limbeck.students import Blueprint, config_facts_of, read_config
from limbeck.tasks.base import Task
from limbeck.tasks.embeddings import Embeddings
from limbeck.tokenizing import load_tokenizer
from limbeck.vocabulary import Vocabulary
from tests.families import LABELS, texts, write_tiny
from tests.limbeck.bench import Bench
from tests.limbeck.task_data import EXAMPLES, write

#: The tasks of texts.
TEXT_TASKS = ("sequence_classification", *EXAMPLES, "masked_lm", "embeddings")
_LENGTH = 32
_ROWS = 24


def methods() -> list[type[Method]]:
    """All that a configuration knows."""
    union, *_ = get_args(limbeck.config.Method)
    return [get_args(member)[0] for member in get_args(union)]


@dataclass(frozen=True)
class Ground:
    """A tiny teacher of a family for a task, and data."""

    task: Task
    bench: Bench
    answers: Tensor | None  #: the teacher's, random
    tokens: SpecialTokens

    @classmethod
    def of(cls, family: str, kind: str, folder: Path) -> Ground:
        task: Task = Embeddings().for_data(pair=False) if kind == "embeddings" else TASKS[kind]()
        labels, splits = _data(kind, folder / "data")
        head: bool | str = "ForMaskedLM" if kind == "masked_lm" else False
        start = write_tiny(family, folder / "start", head=head)
        config = read_config(start)
        tokenizer = load_tokenizer(start, config, task)
        words = Vocabulary.whole(config.vocab_size)
        blueprint = Blueprint.read(start, task, labels, words)
        if not (task.headless or task.of_words):  # a teacher has a head for the task
            blueprint.save(blueprint.load_teacher(keep_head=False), folder / "teacher")
            blueprint = Blueprint.read(folder / "teacher", task, labels, words)
        coded = [task.encode(tokenizer, split, labels, _LENGTH, lambda: None) for split in splits]
        answers = None if task.of_words else _answers(task, coded[0], labels, config.hidden_size)
        if kind == "embeddings":
            assert answers is not None
            coded[1] = task.judged(coded[1], answers[: len(coded[1])].numpy())
        special = SpecialTokens(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids))
        return cls(task, Bench(folder, blueprint, coded[0], coded[1]), answers, special)

    def serves(self, method: Method) -> bool:
        """Whether such a job is taken."""
        return serves(method, self.task, offers(Student(layers=2), config_facts_of(self.bench.blueprint.config)))

    def keep(self, method: Method, folder: Path) -> None:
        """Two steps by the method; the folder that they leave answers as the student that was trained.

        Raises:
            AssertionError: it does not, or nothing was learned.
        """
        bench = self.bench
        phase = bench.phase(method, task=self.task, epochs=1, teacher_logits=self.answers)
        phase = replace(phase, models=replace(phase.models, tokens=lambda: self.tokens))
        phase = replace(phase, batch_size=-(-phase.train.groups // 2))
        assert phase.steps == 2
        before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
        student = train(phase, bench.run(folder / "run", phase)).model.eval()
        after = student.state_dict()
        assert any(not torch.equal(value, before[name]) for name, value in after.items() if name in before)
        bench.blueprint.save(student, folder / "student")
        loaded = self.task.model_class().from_pretrained(folder / "student").eval()
        pad_id = bench.blueprint.config.pad_token_id or 0
        batch = Collator(bench.train, pad_id, torch.device("cpu"))(np.arange(len(bench.train)))
        with torch.inference_mode():
            ours, theirs = (self.task.answer(model, batch, inside=True) for model in (student, loaded))
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def _data(kind: str, folder: Path) -> tuple[tuple[str, ...], list[Split]]:
    if kind in EXAMPLES:
        corpus = data.load(Dataset(source=f"path:{write(kind, folder, rows=_ROWS)}"), seed=1)
        return tuple(corpus.labels), [corpus.train, corpus.validation]
    chosen = list(texts()[::6][:_ROWS])
    labelled = kind == "sequence_classification"
    labels: list[Any] = [row % len(LABELS) if labelled else None for row in range(_ROWS)]
    split = Split(chosen, None, labels)
    return LABELS if labelled else (), [split, split]


def _answers(task: Task, coded: Encoded, labels: tuple[str, ...], width: int) -> Tensor:
    rows = len(coded.ids) if coded.per_token else len(coded)
    draw = torch.Generator().manual_seed(0)
    if task.kind == "vector":
        return torch.nn.functional.normalize(torch.randn(rows, width, generator=draw), dim=-1)
    return torch.randn(rows, task.outputs(labels), generator=draw)
