"""Progress is an honest estimate: from counted work and the measured rate, and it never falls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, DistilBertConfig

from limbeck.callbacks import Callbacks, Progress, Stage
from limbeck.progress import Item, Meter, forward_work

RATE = 2e9
PLAN = {
    "teacher": Item(Stage.TEACHER, work=100 * RATE),
    "distilling": Item(Stage.DISTILLING, work=60 * RATE),
    "exporting": Item(Stage.EXPORTING, seconds=40),
}


class Watch(Callbacks):
    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[Progress] = []

    def on_progress(self, progress: Progress) -> None:
        self.seen.append(progress)


def begun() -> tuple[Meter, Watch]:
    watch = Watch()
    meter = Meter(watch, clock=lambda: watch.now)
    meter.enter(Stage.PREPARING)
    meter.plan(PLAN, total_steps=160)
    return meter, watch


def work(meter: Meter, watch: Watch, item: str, *, seconds: float, pieces: int, share: float = 1.0) -> None:
    meter.begin(item)
    for _ in range(pieces):
        watch.now += seconds / pieces
        meter.advance(share / pieces, examples=32, steps=1)


def test_the_estimate_is_right_once_the_rate_is_measured() -> None:
    """200 s of job at the rate of this machine: after half of the teacher's 100 s, 150 s are left and 25 % are done."""
    meter, watch = begun()
    work(meter, watch, "teacher", seconds=50, pieces=50, share=0.5)
    last = watch.seen[-1]
    assert last.eta_seconds == pytest.approx(150, rel=0.65)
    work(meter, watch, "teacher", seconds=50, pieces=50, share=0.5)
    work(meter, watch, "distilling", seconds=60, pieces=60)
    last = watch.seen[-1]
    assert last.eta_seconds == pytest.approx(40, abs=1)
    assert last.percent == pytest.approx(80, abs=1)
    assert last.step == last.total_steps == 160
    assert last.examples_per_second == pytest.approx(32)


def test_percent_never_falls_when_the_machine_slows_down() -> None:
    meter, watch = begun()
    work(meter, watch, "teacher", seconds=10, pieces=20)
    work(meter, watch, "distilling", seconds=600, pieces=60)
    meter.begin("exporting")
    watch.now += 40
    meter.finish("exporting")
    percents = [progress.percent for progress in watch.seen]
    assert percents == sorted(percents)
    assert percents[-1] == 100


def test_a_resumed_job_goes_on_counting() -> None:
    """Guards the bar of a job that moved to another machine: seconds, steps and percent go on from where they were."""
    meter, watch = begun()
    work(meter, watch, "teacher", seconds=100, pieces=100)
    meter.finish("teacher")
    state: Any = meter.state()
    again = Watch()
    resumed = Meter(again, clock=lambda: again.now)
    resumed.restore(state)
    resumed.enter(Stage.PREPARING)
    resumed.plan(PLAN, total_steps=160)
    work(resumed, again, "distilling", seconds=30, pieces=30, share=0.5)
    assert again.seen[-1].step == 130
    assert again.seen[-1].eta_seconds == pytest.approx(70, rel=0.15)
    assert again.seen[0].percent >= watch.seen[-1].percent
    assert resumed.seconds["teacher"] == pytest.approx(100)


def test_reports_come_at_most_twice_a_second() -> None:
    meter, watch = begun()
    before = len(watch.seen)
    work(meter, watch, "teacher", seconds=10, pieces=1000)
    assert len(watch.seen) - before <= 22


def test_work_is_the_known_count_for_bert_base() -> None:
    """85 million weights in 12 layers, two operations each per token: 170 MFLOP a token, and attention on top."""
    config = BertConfig()
    one = forward_work(config, 12, np.array([1]))
    assert one == pytest.approx(2 * 84_934_656 + 12 * 4 * 768)
    assert forward_work(config, 12, np.array([128])) > 128 * one


def test_a_pruned_distilbert_is_counted_as_narrow_as_it_is() -> None:
    """Guards the progress and an exit curve's operations: its neurons have another name."""
    lengths = np.array([100])
    whole, pruned = (forward_work(DistilBertConfig(hidden_dim=width), 1, lengths) for width in (3072, 1536))
    assert whole - pruned == 2 * 2 * 768 * 1536 * 100
