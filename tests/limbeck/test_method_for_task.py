"""A method that takes another in its place for a task, and runs that go on though the defaults have changed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from limbeck import preflight, shapes
from limbeck.callbacks import Stage
from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted
from limbeck.methods.auto import Auto
from tests.limbeck.bench import Recorder
from tests.limbeck.task_data import write
from tests.tiny import write_tiny_bert


class StopsAt(Recorder):
    """Stops the run once a stage has begun."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def should_stop(self) -> bool:
        return self.stage in self.stages


class StopsIn(Recorder):
    """Stops the run once the student's training has told so many points of its loss."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.most = points

    def should_stop(self) -> bool:
        return sum("distilling/loss" in values for _, values in self.points) >= self.most


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_tiny_bert(folder / "teacher")
    write("question_answering", folder / "data")
    return folder


def config(place: Path, method: Any) -> DistillConfig:
    document = {
        "method": method,
        "teacher": {"source": f"path:{place / 'teacher'}", "finetune": {"epochs": 12, "learning_rate": 5e-3}},
        "dataset": f"path:{place / 'data'}",
        "student": 2,
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "max_length": 32},
        "evaluation": {"baseline": False, "hard_samples": False},
        "export": [],
    }
    return DistillConfig.parse(document)


def assert_same(ours: DistillResult, theirs: DistillResult) -> None:
    one, other = (load_file(result.student / "model.safetensors") for result in (ours, theirs))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_auto_answers_questions_as_kd_does_and_says_so(place: Path, tmp_path: Path) -> None:
    """Matching the inside costs a third of the steps, and places are learned no better for it (docs/adr/0013)."""
    with pytest.raises(Interrupted):
        distill(config(place, "auto"), tmp_path / "auto", callbacks=StopsIn(9))
    result = distill(config(place, "auto"), tmp_path / "auto")
    assert_same(result, distill(config(place, "kd"), tmp_path / "kd"))
    assert (result.scorecard.method, result.scorecard.chosen_method) == ("auto", "kd")
    assert result.provenance["method"] == "kd"
    assert "with the method `auto`, which chose `kd`." in (result.student / "README.md").read_text()


def test_what_is_taken_in_its_place_is_not_raced_against_itself(place: Path, tmp_path: Path) -> None:
    """Two trials of the same method would cost a round, and leave a better one out."""
    said = Recorder()
    document = config(place, {"type": "auto", "race": True}).model_dump(mode="json")
    document["training"] |= {"epochs": 5, "batch_size": 3}
    distill(DistillConfig.parse(document), tmp_path, callbacks=said)
    rounds = [set(data["scores"]) for kind, _, data in said.events if kind == "trials.compared"]
    assert rounds[0] == {"method 'kd'", "method 'theseus'", "method 'none'"}


def test_what_is_taken_in_its_place_is_told_once(place: Path, tmp_path: Path) -> None:
    stopped, said = StopsIn(9), Recorder()
    with pytest.raises(Interrupted):
        distill(config(place, "auto"), tmp_path, callbacks=stopped)
    distill(config(place, "auto"), tmp_path, callbacks=said)
    first, second = (
        [message for kind, message, _ in one.events if kind == "method.adapted"] for one in (stopped, said)
    )
    assert first == ["The student of 'auto' is trained by 'kd', as the task is question_answering."]
    assert second == []
    for method, told in (("auto", first), ("minilm", [])):  # whoever validates a job is told as well
        assert list(preflight.notes(config(place, method), "question_answering", None)) == told


@pytest.mark.parametrize("stopped", [StopsIn(20), StopsAt(Stage.EVALUATING)], ids=["training", "evaluating"])
def test_a_run_that_an_earlier_version_began_goes_on_as_it_began(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Recorder
) -> None:
    """Guards jobs through an upgrade: the earlier version matched the inside for questions too, in a part of its own,
    and started from other layers. Its student has to end as if nothing had changed, and its card to tell of that."""
    with monkeypatch.context() as earlier:
        earlier.setattr(Auto, "for_task", lambda self, task: self)
        earlier.setattr(shapes, "default_start", lambda kept, of: "uniform")
        whole = distill(config(place, "auto"), tmp_path / "whole")
        with pytest.raises(Interrupted):
            distill(config(place, "auto"), tmp_path / "job", callbacks=stopped)
        assert any(kind == "epoch.finished" for kind, _, _ in stopped.events)
    result = distill(config(place, "auto"), tmp_path / "job")
    assert_same(result, whole)
    assert (result.scorecard.chosen_method, result.provenance["student_layers"]) == (None, [1, 3])
    assert distill(config(place, "auto"), tmp_path / "new").provenance["student_layers"] == [0, 2]
