"""What is said of a teacher that a job fine-tunes."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck import teaching
from limbeck.engine import distill
from limbeck.teaching import still_rising
from tests.limbeck.bench import Recorder
from tests.limbeck.place import LABELS, Place
from tests.tiny import write_tiny_bert, write_tiny_dataset


@pytest.mark.parametrize(
    ("scores", "rows", "rising"),
    [
        ([0.524, 0.627, 0.671], 1_000, True),
        ([0.693, 0.732, 0.740], 1_000, False),  # what epochs at their end gain
        ([0.524, 0.671, 0.627], 1_000, False),  # past its best
        ([0.60, 0.70, 0.74], 100, False),  # four texts of a hundred: within the standard error
        ([0.60, 0.70, 0.76], 100, True),
        ([0.9], 1_000, False),  # one epoch says nothing of a rise
    ],
)
def test_a_rise_is_a_gain_of_the_last_epoch_beyond_chance(scores: list[float], rows: int, rising: bool) -> None:
    assert still_rising(scores, rows) is rising


@pytest.mark.parametrize("rising", [True, False])
def test_a_teacher_that_is_cut_off_in_its_rise_is_told(
    rising: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against students of an unfinished teacher whose scorecard blames the method."""
    asked: list[tuple[list[float], int]] = []

    def judge(scores: list[float], rows: int) -> bool:
        asked.append((scores, rows))
        return rising

    monkeypatch.setattr(teaching, "still_rising", judge)
    folder = write_tiny_dataset(tmp_path / "data", rows=96, labels=LABELS)
    place, said = Place(write_tiny_bert(tmp_path / "teacher"), folder), Recorder()
    distill(place.config(evaluation={"baseline": False}), tmp_path / "work", callbacks=said)
    [(scores, rows)] = asked
    validated = [data["accuracy"] for kind, _, data in said.events if kind == "epoch.finished"][:2]
    assert scores == validated
    assert rows == next(data for kind, _, data in said.events if kind == "data.loaded")["validation"]
    told = [(message, data) for kind, message, data in said.events if kind == "teacher.rising"]
    assert len(told) == rising
    for message, data in told:
        assert "the last of its 2 epochs" in message
        assert "teacher.finetune.epochs" in message
        assert data == {"teacher": "teacher", "epochs": 2, "gain": scores[1] - scores[0]}
