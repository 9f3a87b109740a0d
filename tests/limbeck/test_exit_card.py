"""What a student with early exits is said to cost and to keep: operations, the curve, the speed that dev chooses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig

from limbeck.exit_card import Answers, _work, answers_of, calibrate, measure_exits
from limbeck.methods.fastbert import FastBert
from limbeck.progress import forward_work
from limbeck.runtime.encoding import Row
from tests.exported import encoded
from tests.limbeck.bench import TASK
from tests.limbeck.test_exits import batch_of, model_of


def test_the_floor_is_kept_on_the_way_to_the_speed() -> None:
    """Guards the calibration: 8 of 10 right with all layers; the branch is right about its three surest, wrong about
    the rest. 0.5 points allow no loss, 10 points one, and a floor that all layers miss allows nothing."""
    labels = np.zeros(10, dtype=np.int64)
    head = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    branch = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    sure = np.linspace(0.105, 0.555, 10).astype(np.float32)
    found = Answers(np.stack([branch, head]), np.stack([sure, sure]))
    assert calibrate(found, labels, "accuracy", FastBert()) == (pytest.approx(0.25), pytest.approx(0.795))
    assert calibrate(found, labels, "accuracy", FastBert(max_loss=10))[0] == pytest.approx(0.30)
    assert calibrate(found, labels, "accuracy", FastBert(floor=0.6)) == (pytest.approx(0.35), 0.6)
    assert calibrate(found, labels, "accuracy", FastBert(floor=0.9)) == (0.0, 0.9)


def test_the_default_speed_is_chosen_on_validation_alone(tmp_path: Path) -> None:
    """Guards the figures of the test split, which would have chosen the speed that they are of: validation's labels are
    what the head answers, the test split's what the first branch does."""
    model = model_of("bert", 3)
    batch = batch_of(model)
    rows = [
        Row(ids[:length], [0] * length)
        for ids, length in zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(dim=1).tolist(), strict=True)
    ]
    found = answers_of(model, encoded(rows, [0] * len(rows)), torch.device("cpu"), lambda: None)
    first, head = found.predictions[0], found.predictions[-1]
    speed, floor = calibrate(found, head, "accuracy", FastBert())
    assert calibrate(found, first, "accuracy", FastBert()) != (speed, floor), "or this test shows nothing"
    splits = {"validation": encoded(rows, head.tolist()), "test": encoded(rows, first.tolist())}
    job: Any = SimpleNamespace(task=TASK, **splits)
    config = SimpleNamespace(export=(), training=SimpleNamespace(seed=1))
    device = SimpleNamespace(torch=torch.device("cpu"), place=lambda one: one)
    run: Any = SimpleNamespace(device=device, config=config, poll=lambda: None, event=lambda *_, **__: None)
    (tmp_path / "limbeck.json").write_text('{"version": 1}')
    card = measure_exits(run, job, FastBert(), model, tmp_path, rows, 0)
    assert (card.speed, card.floor, card.validation_whole) == (speed, floor, 1)
    assert json.loads((tmp_path / "limbeck.json").read_text()) == {"version": 1, "exits": {"layers": 4, "speed": speed}}
    for point in card.curve:
        assert point.metric.value == pytest.approx((found.at(point.speed)[0] == first).mean())
    assert card.validation == pytest.approx((found.at(speed)[0] == head).mean())


def test_operations_are_counted_of_the_layers_and_branches_that_a_text_passes() -> None:
    """Guards the curve, which says what a speed saves: branches are not free, the last layer has none, and at speed 0
    none is computed."""
    model: Any = SimpleNamespace(config=BertConfig(hidden_size=16, num_hidden_layers=4, intermediate_size=32))
    lengths, layers = np.array([3, 5]), np.array([1, 4])
    of_layers = forward_work(model.config, 1, lengths) + 3 * forward_work(model.config, 1, lengths[1:])
    # A branch: 16 numbers of each token to 128, four of its scores and means; then five matrices' rows of 128.
    of_branches = 2 * 128 * (20 * (8 + 5 + 5) + 5 * 128 * (2 + 1 + 1))
    assert _work(0.5, layers, lengths, model) == pytest.approx(of_layers + of_branches)
    assert _work(0, np.array([4, 4]), lengths, model) == pytest.approx(forward_work(model.config, 4, lengths))
