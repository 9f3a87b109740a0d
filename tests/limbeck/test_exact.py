"""A regression's numbers where the models are multiplied in bfloat16, as on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.batches import Collator
from limbeck.cache import predict
from limbeck.config import Student
from limbeck.criterion import Criterion
from limbeck.device import Device
from limbeck.elastic import Elastic, Size
from limbeck.methods.dynabert import DynaBERT
from limbeck.student_plan import StudentPlan
from limbeck.sub_networks import SubNetworks
from tests.limbeck.bench import Bench
from tests.limbeck.contract import Ground

CPU = torch.device("cpu")
YEARS = np.linspace(1990, 2020, 24).astype(np.float32)


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    found = Ground.of(request.param, "regression", tmp_path_factory.mktemp(request.param))
    train = replace(found.bench.train, labels=YEARS)
    return replace(found, bench=replace(found.bench, train=train))


def begun(ground: Ground, model: Any) -> Any:
    """With the head that a regression of years begins with."""
    recurrent = model.config.model_type == "limbeck-recurrent"
    name = "classifier" if recurrent else ground.task.output_layer(model.config.model_type)
    ground.task.begin_head(model.get_submodule(name), ground.bench.train)
    return model


def answered(ground: Ground, model: Any, folder: Path, precision: Any) -> Any:
    bench: Bench = ground.bench
    run = bench.run(folder / precision, bench.phase(task=ground.task))
    run.device = Device(CPU, precision)
    return predict(model, bench.train, ground.task, run)[:, 0]


@pytest.mark.parametrize("who", ["teacher", "student", "bigru"])
def test_numbers_are_not_rounded_to_bfloat16(ground: Ground, tmp_path: Path, who: str) -> None:
    """Guards the default precision of a GPU: of labels that are years all answers were 2000 or 2008."""
    bench = ground.bench
    if who == "teacher":
        model = bench.teacher()
    else:
        options = Student(layers=2) if who == "student" else Student(architecture="bigru", hidden_size=8)
        plan = StudentPlan.of(options, bench.blueprint, seed=0)
        model = plan.start(bench.teacher().state_dict())
    begun(ground, model)
    whole, short = (answered(ground, model, tmp_path, one) for one in ("float32", "bfloat16"))
    assert np.ptp(whole) > 0.5
    assert np.abs(short - whole).max() < 0.5
    assert len(np.unique(short)) > 12


def test_sub_networks_answer_with_whole_numbers(ground: Ground, tmp_path: Path) -> None:
    """Guards ``dynabert``, whose networks are run and cut by hand."""
    bench = ground.bench
    teacher = begun(ground, bench.teacher())
    phase = bench.phase(DynaBERT(), task=ground.task)
    models = replace(phase.models, teacher=lambda: teacher)
    built = DynaBERT().build(DynaBERT().parts()[0], models, Criterion(ground.task))
    assert isinstance(built, SubNetworks)
    elastic: Elastic = built.elastic
    elastic.network.eval()
    size = Size((0, 2), 16, elastic.whole.heads)
    batch = Collator(bench.train, 0, CPU)(np.arange(len(bench.train)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = elastic.run(batch.inputs, size)[0].logits
    assert found.dtype == torch.float32
    assert len(found.unique()) > 12
    assert len(np.unique(answered(ground, elastic.cut(size), tmp_path, "bfloat16"))) > 12
