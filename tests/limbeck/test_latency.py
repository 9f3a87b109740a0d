"""Timing models side by side."""

from __future__ import annotations

import time

import pytest

from limbeck.errors import Interrupted, InvalidInput
from limbeck.latency import measure_latency
from limbeck.runtime.encoding import Feeds, Row
from limbeck.timing import SECONDS_VARIABLE, timed_seconds


class Sleeper:
    """A model that takes so many milliseconds, and notes what it was asked."""

    def __init__(self, milliseconds: float) -> None:
        self.seconds = milliseconds / 1000
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, feeds: Feeds) -> None:
        self.seen.append(feeds["input_ids"].shape)
        time.sleep(self.seconds)


ROWS = [Row(list(range(1, 4 + i % 7)), [0] * (3 + i % 7)) for i in range(20)]


def test_a_slow_model_is_slower() -> None:
    """Guards against figures of another model, in other units, or of the wrong batch size."""
    fast, slow = Sleeper(1), Sleeper(5)
    found = measure_latency({"fast": fast, "slow": slow}, ROWS, pad_id=0, seconds=0.05)
    for name, least in (("fast", 1), ("slow", 5)):
        one, many = found[name]
        assert (one.batch_size, many.batch_size) == (1, 32)
        assert least <= one.p50_ms <= one.p95_ms
        # Sleeping takes at least as long; how much longer is the machine's affair.
        assert one.examples_per_second <= 1000 / least
        assert many.examples_per_second <= 32_000 / least
        assert many.examples_per_second > 4 * one.examples_per_second, "of its texts, not of its calls"
    assert found["fast"][0].p50_ms < found["slow"][0].p50_ms


def test_models_answer_the_same_batches_of_the_exact_size() -> None:
    """Guards against a last, smaller batch that looks fast, and against models that are timed on other texts."""
    first, second = Sleeper(0), Sleeper(0)
    measure_latency({"first": first, "second": second}, ROWS, pad_id=0, seconds=0.02)
    assert first.seen == second.seen
    assert {shape[0] for shape in first.seen} == {1, 32}
    singles = [tokens for rows, tokens in first.seen if rows == 1]
    assert len(set(singles)) > 1, "texts come in their own lengths"


def test_the_time_is_bounded() -> None:
    """Guards against a scorecard that takes minutes where the model is slow."""
    start = time.perf_counter()
    slow = Sleeper(20)
    measure_latency({"slow": slow}, ROWS, pad_id=0, seconds=0.05)
    assert [sum(rows == size for rows, _ in slow.seen) for size in (1, 32)] == [5 + 5, 1 + 3]
    assert time.perf_counter() - start < 5


def test_it_can_be_stopped() -> None:
    """Guards against a cancelled job that measures to the end."""

    def stop() -> None:
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        measure_latency({"model": Sleeper(0)}, ROWS, pad_id=0, poll=stop)


@pytest.mark.parametrize(("given", "seconds"), [(None, 1), ("2.5", 2.5), ("0", None), ("soon", None), ("inf", None)])
def test_how_long_models_are_timed_is_said_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: str | None, seconds: float | None
) -> None:
    """Guards a training against a word that nobody can read, which would end it when all is done but the timing."""
    monkeypatch.delenv(SECONDS_VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(SECONDS_VARIABLE, given)
    if seconds is not None:
        assert timed_seconds() == seconds
        return
    with pytest.raises(InvalidInput, match=SECONDS_VARIABLE):
        timed_seconds()
