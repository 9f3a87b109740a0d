"""A head that answers with numbers, in the training loop: it steps in units of the labels' spread, resumed as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.batches import Encoded
from limbeck.errors import Interrupted
from limbeck.loop import train
from limbeck.methods.base import Models
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.phase import Phase
from limbeck.students import Blueprint
from limbeck.tasks.regression import Regression
from tests.limbeck.bench import Bench, Recorder, assert_equal
from tests.tiny import write_tiny_bert

TASK = Regression()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def phase_of(bench: Bench) -> Phase:
    """``kd`` to numbers with a spread of some hundreds."""
    teacher = write_tiny_bert(bench.folder / "numbers", labels=("number",))
    blueprint = Blueprint.read(teacher, TASK, (), bench.blueprint.vocabulary)
    answers = blueprint.load_teacher(keep_head=True).eval().requires_grad_(False)
    student = blueprint.cut(answers.state_dict(), (1, 3))
    train_split, validation = _numbered(bench.train), _numbered(bench.validation)
    return bench.phase(
        KnowledgeDistillation(),
        task=TASK,
        models=Models(student, lambda: answers, (1, 3)),
        train=train_split,
        validation=validation,
        teacher_logits=torch.from_numpy(train_split.labels)[:, None] + 50,
        weight_decay=0.1,
    )


def _numbered(data: Encoded) -> Encoded:
    return replace(data, labels=(data.labels * 300 + 1000).astype(np.float32))


def resumed(bench: Bench, folder: Path, *, every: int) -> dict[str, torch.Tensor]:
    """The weights of a training that is stopped again and again."""
    for _ in range(100):
        phase = phase_of(bench)
        run = bench.run(folder, phase, Recorder(stop_after=every))
        try:
            return dict(train(phase, run).model.state_dict())
        except Interrupted:
            run.commit()
    raise AssertionError("the run never ended")


def test_a_resumed_training_of_numbers_equals_an_undisturbed_one(bench: Bench, tmp_path: Path) -> None:
    """Guards the optimizer's states, which are kept by number: the head's come last, in groups of their own."""
    phase = phase_of(bench)
    whole = dict(train(phase, bench.run(tmp_path / "whole", phase)).model.state_dict())
    assert_equal(resumed(bench, tmp_path / "pieces", every=3), whole)


def test_a_training_of_an_earlier_version_goes_on_as_it_began(bench: Bench, tmp_path: Path) -> None:
    """Guards jobs that are in flight when Limbeck is renewed: their states are numbered without such groups, and would
    be those of other weights."""
    ends = []
    for name, every in (("whole", 1000), ("pieces", 3)):
        phase = phase_of(bench)
        run = bench.run(tmp_path / name, phase, Recorder(stop_after=0))
        with pytest.raises(Interrupted):
            train(phase, run)
        tensors, facts = run.store.read_tensors("distilling-training")
        del facts["position"]["scaled"]
        run.store.write_tensors("distilling-training", tensors, facts)
        run.commit()
        ends.append(resumed(bench, tmp_path / name, every=every))
    assert_equal(ends[1], ends[0])
    today = phase_of(bench)
    head = train(today, bench.run(tmp_path / "today", today)).model.state_dict()["classifier.weight"]
    assert not torch.equal(ends[0]["classifier.weight"], head)
