"""``benchmarks.serving``: that a goal which is missed is told, and one that was not measured is not called met."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.serving.goals import Goal, judged
from benchmarks.serving.load import Load, medians, read
from benchmarks.serving.many import Many, Times
from benchmarks.serving.peers import PEERS
from benchmarks.serving.servers import Start

RATES = {
    "limbeck onnx": 1000.0,
    "limbeck onnx-int8": 1400.0,
    "in process onnx": 1100.0,
    "in process onnx-int8": 1700.0,
    "infinity": 200.0,
    "infinity-optimum onnx": 500.0,
    "infinity-optimum onnx-int8": 800.0,
    "litserve": 200.0,
    "pipeline": 50.0,
}
LOADS = [
    Load(server, 3, "short", clients, rate + clients / 100, 10, 15, 20, 0)
    for server, rate in RATES.items()
    for clients in (1, 8, 32, 64)
]
STARTS = [Start(server, 3, 2.0, 300.0, 1.0) for server in RATES]
SMALL = Times(100, 100.0, 300.0, 400.0)
MANY = Many(100, "onnx-int8", 512, 200, 600, SMALL, SMALL, SMALL, Load("hot", 3, "short", 64, 900, 100, 200, 350, 0))


def missed(goals: list[Goal]) -> list[str]:
    return [goal.name for goal in goals if goal.missed]


def changed(server: str, clients: int, **values: float) -> list[Load]:
    return [replace(one, **values) if (one.server, one.clients) == (server, clients) else one for one in LOADS]  # type: ignore[arg-type]


def test_a_run_that_reaches_everything_misses_nothing() -> None:
    goals = judged(LOADS, STARTS, MANY)
    assert missed(goals) == []
    assert all(goal.missed is not None for goal in goals)


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        (changed("infinity", 8, requests_per_second=501.0), "onnx ≥ 2 × infinity at 8, 32, 64 clients"),
        (changed("litserve", 64, requests_per_second=480.0), "onnx-int8 ≥ 3 × litserve at 8, 32, 64 clients"),
        (changed("infinity-optimum onnx", 1, requests_per_second=1001.0), "onnx > 1 × infinity-optimum onnx"),
        (changed("pipeline", 64, requests_per_second=150.0), "onnx ≥ 7 × pipeline at 64 clients"),
        (changed("in process onnx", 64, requests_per_second=1400.0), "onnx ≥ 0.75 × in process onnx at 64"),
        (changed("limbeck onnx", 64, requests_per_second=940.0), "throughput never falls as clients grow"),
        (changed("limbeck onnx", 64, p99_ms=26.0), "p99 at 64 clients ≤ 2.5 × p50"),
        (changed("litserve", 32, errors=1), "no request fails"),
        (changed("litserve", 1, requests_per_second=0.0), "no request fails"),
    ],
)
def test_each_goal_that_is_missed_is_named(loads: list[Load], said: str) -> None:
    found = missed(judged(loads, STARTS, MANY))
    assert [name for name in found if name.startswith(said)], found
    assert len(found) <= 2  # a peer that is too fast for one form may be so for the other


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (replace(MANY, cold=replace(SMALL, p99=1001.0)), "a cold student answers in under 1 s"),
        (replace(MANY, peak_mb=713.0), "a hundred students within the memory limit"),
        (replace(MANY, warm_beside_hot=replace(SMALL, p99=351.0)), "one hot student does not starve the others"),
    ],
)
def test_what_a_hundred_students_miss_is_named(run: Many, said: str) -> None:
    assert missed(judged(LOADS, STARTS, run))[0].startswith(said)


def test_what_was_not_run_is_not_called_met() -> None:
    """Guards against a short run that passes goals which it never looked at."""
    goals = judged([one for one in LOADS if one.server.startswith("limbeck")], STARTS[:2], None)
    unknown = [goal.name for goal in goals if goal.verdict == "not measured"]
    assert [name for name in unknown if "infinity" in name]
    assert [name for name in unknown if "hundred" in name]
    few = judged([one for one in LOADS if one.clients == 8], STARTS, MANY)
    unknown = [goal.name for goal in few if goal.verdict == "not measured"]
    assert [name for name in unknown if "p99 at 64" in name or "never falls" in name] == [
        "throughput never falls as clients grow",
        "p99 at 64 clients ≤ 2.5 × p50",
    ]


def test_a_server_that_answers_something_else_is_found() -> None:
    """Guards against a comparison with a server that was given another student."""
    starts = [replace(one, agreement=0.5) if one.server == "litserve" else one for one in STARTS]
    assert missed(judged(LOADS, starts, MANY)) == ["every server answers with the student's labels"]


def test_the_best_label_is_read_from_every_shape() -> None:
    good, bad = {"label": "positive", "score": 0.9}, {"label": "negative", "score": 0.1}
    for answer in ([good], [[bad, good]], good, {"data": [[bad, good]]}):
        assert PEERS[0].label(answer) == ("positive", 0.9)


def test_what_wrk_prints_is_read_and_turns_become_medians() -> None:
    rows = [read(f"x\nRESULT {count} 2000000 10000 15000 20000 0\n", 8, ("a", 3, "short")) for count in (2, 4, 9)]
    assert medians(rows) == [Load("a", 3, "short", 8, 2.0, 10.0, 15.0, 20.0, 0)]
