"""``benchmarks.exits``: how its goals are judged, and how a speed is chosen; nothing is timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.exits.__main__ import speed_for
from benchmarks.exits.judging import generated, share_of_ideal, verdicts
from limbeck.exit_card import Answers


def point(name: str, ratio: float, layers: float, leaves: bool) -> dict[str, Any]:
    return {
        "name": name,
        "speed": 0.5,
        "leaves": leaves,
        "mean_layers": layers,
        "ms": 1.0,
        "ratio": ratio,
        "low": ratio,
        "high": ratio,
    }


def run(half: float, none: float) -> dict[str, Any]:
    points = [point("none can leave", none, 6.0, False), point("half of the layers", half, 3.0, True)]
    return {
        "command": "python -m benchmarks.exits",
        "machine": {"date": "2026-11-26", "cores": 2, "cpu": "a CPU"},
        "layers": 6,
        "width": 384,
        "texts": 200,
        "tokens": 25.0,
        "rounds": 5,
        "batches": [{"batch_size": 1, "plain_ms": 4.0, "points": points}],
    }


@pytest.mark.parametrize(
    ("half", "none", "met"), [(1.71, 0.92, [True, True]), (1.69, 0.92, [True, False]), (1.71, 0.9, [False, True])]
)
def test_goals_are_shares_of_the_layers_and_of_the_plain_time(half: float, none: float, met: list[bool]) -> None:
    """Half the layers are twice as fast at best; 85 % of that is 1.7. 0.9 times as fast takes 1.11 of the time."""
    assert [one[2] for one in verdicts(run(half, none))] == met
    assert generated(run(half, none)).count("**missed**") == met.count(False)
    assert share_of_ideal(point("", 1.7, 3.0, True), 6) == pytest.approx(0.85)


def test_the_page_shows_every_point() -> None:
    text = generated(run(1.8, 1.0))
    assert "| 1 | plain student | 6 | 4.00 |  |  |" in text
    assert "| 1 | half of the layers | 3.00 | 1.00 | 1.80 (1.80, 1.80) | 90 % |" in text
    assert "| batch 1, none can leave: at most 1.10 of the plain student's time | 1.00 | met |" in text


def test_a_speed_is_chosen_by_the_layers_that_texts_go_through() -> None:
    """Four texts, three layers: the first branch has 0.1, 0.3, 0.5, 0.7. Between 0.3 and 0.5 two texts leave behind it,
    and two go on, whose second branch is never sure: (1 + 1 + 3 + 3) / 4 = 2."""
    uncertainty = np.array([[0.1, 0.3, 0.5, 0.7], [0.9, 0.9, 0.9, 0.9], [0, 0, 0, 0]], dtype=np.float32)
    found = Answers(np.zeros((3, 4), dtype=np.int64), uncertainty)
    speed = speed_for(found, 2.0)
    assert speed == pytest.approx(0.4)
    assert found.at(speed)[1].tolist() == [1, 1, 3, 3]
