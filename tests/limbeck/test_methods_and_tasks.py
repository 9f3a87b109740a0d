"""Every method on every task that it serves beside classification: what is trained is what plain transformers loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import limbeck.config
from limbeck import data
from limbeck.batches import Collator
from limbeck.config import TASKS, Dataset
from limbeck.loop import train
from limbeck.methods.base import Method
from limbeck.preflight import serves
from limbeck.shapes import OFFERS
from limbeck.students import Blueprint
from limbeck.tasks.base import Task
from limbeck.vocabulary import Vocabulary
from tests.limbeck.bench import Bench
from tests.limbeck.task_data import EXAMPLES, write
from tests.tiny import vocabulary, write_tiny_bert

METHODS: list[type[Method]] = [get_args(member)[0] for member in get_args(get_args(limbeck.config.Method)[0])]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class OfTask:
    """A bench whose teacher has the task's head, and answers of that width for each row or token."""

    task: Task
    bench: Bench
    answers: torch.Tensor


@pytest.fixture(scope="module", params=list(EXAMPLES))
def of_task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OfTask:
    folder, task = tmp_path_factory.mktemp(request.param), TASKS[request.param]()
    corpus = data.load(Dataset(source=f"path:{write(request.param, folder / 'data', rows=24)}"), seed=1)
    bare = write_tiny_bert(folder / "bare")
    tokenizer, words = AutoTokenizer.from_pretrained(bare), Vocabulary.whole(len(vocabulary()))
    headless = Blueprint.read(bare, task, corpus.labels, words)
    headless.save(headless.load_teacher(keep_head=False), folder / "teacher")
    blueprint = Blueprint.read(folder / "teacher", task, corpus.labels, words)
    splits = [
        task.encode(tokenizer, split, corpus.labels, 32, lambda: None) for split in (corpus.train, corpus.validation)
    ]
    rows = len(splits[0].ids) if splits[0].per_token else len(splits[0])
    answers = torch.randn(rows, task.outputs(corpus.labels), generator=torch.Generator().manual_seed(0))
    return OfTask(task, Bench(folder, blueprint, *splits), answers)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_two_steps_a_folder_and_the_same_predictions(of_task: OfTask, tmp_path: Path, method: type[Method]) -> None:
    """Guards labels of another shape than classes', answers token by token, and heads, under every method."""
    task, bench = of_task.task, of_task.bench
    if not serves(method(), task, frozenset(OFFERS)):
        pytest.skip("refused in preflight")
    phase = bench.phase(method(), task=task, epochs=1, teacher_logits=of_task.answers)
    phase = replace(phase, batch_size=-(-phase.train.groups // 2))
    assert phase.steps == 2
    before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
    student = train(phase, bench.run(tmp_path / "run", phase)).model.eval()
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    bench.blueprint.save(student, tmp_path / "student")
    loaded = task.model_class().from_pretrained(tmp_path / "student").eval()
    whole = Collator(bench.validation, 0, CPU)(np.arange(len(bench.validation)))
    real = whole.inputs["attention_mask"] > 0
    with torch.inference_mode():
        ours, theirs = (task.logits(model(**whole.inputs)) for model in (student, loaded))
    torch.testing.assert_close(theirs, ours)
    answers = [
        task.predictions((logits[real] if bench.validation.per_token else logits).numpy(), bench.validation)
        for logits in (ours, theirs)
    ]
    assert np.array_equal(*(np.asarray(each, dtype=object) for each in answers)) or answers[0] == answers[1]
