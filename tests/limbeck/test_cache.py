"""The teacher's answers: computed once, the same however often the pass is stopped, refused when not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.batches import Encoded, forward_batches
from limbeck.cache import predict, teacher_logits
from limbeck.callbacks import Stage
from limbeck.errors import Diverged, Interrupted
from limbeck.progress import Item
from limbeck.run import Run
from tests.limbeck.bench import LABELS, TASK, Bench, Recorder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def many(bench: Bench) -> Encoded:
    """Enough texts for several batches."""
    train = bench.train
    lengths = np.tile(train.lengths, 10)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    return replace(train, ids=np.tile(train.ids, 10), starts=starts, labels=np.tile(train.labels, 10))


def open_run(bench: Bench, workdir: Path, said: Recorder, *, every: float = 60) -> Run:
    run = bench.run(workdir, bench.phase(), said, every=every)
    run.meter.plan({"cache": Item(Stage.DISTILLING, 1e9)}, 0)
    return run


def test_a_pass_that_is_stopped_again_and_again_gives_the_same_answers(
    bench: Bench, many: Encoded, tmp_path: Path
) -> None:
    """Guards the order of the answers, and that no example is answered twice."""
    assert len(forward_batches(many.lengths)) >= 3
    expected = predict(bench.teacher(), many, TASK, open_run(bench, tmp_path / "whole", Recorder()))
    attempt = 0
    while attempt < 20:
        said = Recorder(stop_after=1)
        run = open_run(bench, tmp_path / "pieces", said)
        try:
            found = teacher_logits(bench.teacher, many, TASK, "key", len(LABELS), run)
            break
        except Interrupted:
            run.commit()
            attempt += 1
    assert attempt >= 2
    assert torch.equal(found, torch.from_numpy(expected))
    (event,) = (data for kind, _, data in said.events if kind == "cache.built")
    assert event["hits"] + event["misses"] == len(many)
    assert event["hits"] > 0


def test_a_pass_over_a_split_that_is_judged_goes_on_where_it_was_cut_off(
    bench: Bench, many: Encoded, tmp_path: Path
) -> None:
    """Guards hours over a large test split, answered again after each fault: by an order to stop, and by a kill."""
    batches = len(forward_batches(many.lengths))
    expected = predict(bench.teacher(), many, TASK, open_run(bench, tmp_path / "whole", Recorder()))
    answered: list[int] = []

    def attempt(stop_after: int, *, killed_after: int = 1_000_000) -> NDArray[np.float32]:
        run = open_run(bench, tmp_path / "pieces", Recorder(stop_after=stop_after), every=0)
        before = len(answered)

        def done(examples: int) -> None:
            answered.append(examples)
            if len(answered) - before == killed_after:
                raise KeyboardInterrupt  # nothing of the state is brought in order

        try:
            return predict(bench.teacher(), many, TASK, run, done, keep="judged")
        except Interrupted:
            run.commit()
            raise

    with pytest.raises(Interrupted):
        attempt(stop_after=1)
    assert 1 <= len(answered) < batches - 2
    with pytest.raises(KeyboardInterrupt):
        attempt(stop_after=1_000_000, killed_after=2)
    again = len(answered)
    found = attempt(stop_after=1_000_000)
    assert np.array_equal(found, expected)
    # Only the last batch before the kill, after which nothing had been committed, is answered twice.
    assert len(answered) == batches + 1
    assert sum(answered[: again - 1] + answered[again:]) == len(many)


def test_known_answers_need_no_teacher(bench: Bench, many: Encoded, tmp_path: Path) -> None:
    def unwanted() -> PreTrainedModel:
        raise AssertionError("the teacher was loaded")

    run = open_run(bench, tmp_path, Recorder())
    first = teacher_logits(bench.teacher, many, TASK, "key", len(LABELS), run)
    again = teacher_logits(unwanted, many, TASK, "key", len(LABELS), open_run(bench, tmp_path, Recorder()))
    assert torch.equal(first, again)


def test_a_job_that_goes_on_on_another_machine_keeps_the_answers_that_it_has_whole(
    bench: Bench, many: Encoded, tmp_path: Path
) -> None:
    """Guards hours of a pass that is done, and a student that would go on learning from answers that round otherwise.
    What is half done is begun anew: a pass of two machines is that of neither."""

    def unwanted() -> PreTrainedModel:
        raise AssertionError("the teacher was loaded")

    def go_on(load: Callable[[], PreTrainedModel], key: str, stop: int | None = None, content: str = "same") -> Tensor:
        run = open_run(bench, tmp_path, said := Recorder(stop_after=stop))
        try:
            return teacher_logits(load, many, TASK, key, len(LABELS), run, content=content)
        finally:
            run.commit()
            events.extend(data for kind, _, data in said.events if kind == "cache.built")

    events: list[dict[str, Any]] = []
    with pytest.raises(Interrupted):
        go_on(bench.teacher, "here", stop=1)
    first = go_on(bench.teacher, "there")
    assert events[0]["hits"] == 0
    assert torch.equal(go_on(unwanted, "elsewhere"), first)
    with pytest.raises(AssertionError, match="was loaded"):
        go_on(unwanted, "elsewhere", content="other")


def test_answers_of_another_teacher_are_not_used(bench: Bench, many: Encoded, tmp_path: Path) -> None:
    """Guards the key: what one teacher said is nothing that another one knows."""
    run = open_run(bench, tmp_path, Recorder())
    teacher_logits(bench.teacher, many, TASK, "one", len(LABELS), run)
    other = bench.teacher()
    with torch.no_grad():
        other.get_submodule("classifier").bias.add_(1.0)  # type: ignore[operator]
    found = teacher_logits(lambda: other, many, TASK, "other", len(LABELS), run)
    assert torch.equal(found, torch.from_numpy(predict(other, many, TASK, run)))


def test_a_teacher_that_answers_nan_is_refused(bench: Bench, many: Encoded, tmp_path: Path) -> None:
    broken = bench.teacher()
    with torch.no_grad():
        broken.get_submodule("classifier").bias[0] = float("nan")  # type: ignore[index]
    with pytest.raises(Diverged, match="teacher's logits"):
        teacher_logits(lambda: broken, many, TASK, "key", len(LABELS), open_run(bench, tmp_path, Recorder()))
