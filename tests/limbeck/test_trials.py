"""Races of methods: who is tried, how the best is found, and that nothing is tried twice; and where ``auto`` starts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from limbeck.batches import Batch
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted
from limbeck.methods.auto import Auto
from limbeck.methods.base import Method, Models, Objective, Part, Term
from limbeck.methods.kd import TeacherAndLabels
from limbeck.methods.none import FineTuning
from tests.limbeck.bench import Recorder
from tests.tiny import docstrings, write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_tiny_bert(folder / "teacher")
    write_tiny_dataset(folder / "data", rows=96, labels=LABELS)
    return folder


def config(place: Path, **changes: Any) -> DistillConfig:
    document: dict[str, Any] = {
        "method": "auto",
        "teacher": {"source": f"path:{place / 'teacher'}", "finetune": {"epochs": 2, "learning_rate": 3e-3}},
        "dataset": {"source": f"path:{place / 'data'}"},
        "student": 2,
        # An eighth and a quarter of 10 epochs are more than one each.
        "training": {"epochs": 10, "batch_size": 3, "learning_rate": 1e-3, "max_length": 32},
        "evaluation": {"hard_samples": False},
        "export": [],
    }
    return DistillConfig.parse({**document, **changes})


#: The shortest job that has a race, of a student whose start is named.
SHORT: dict[str, Any] = {
    "student": [1, 3],
    "training": {"epochs": 5, "batch_size": 3, "learning_rate": 1e-3, "max_length": 32},
    "evaluation": {"baseline": False, "hard_samples": False},
}


class StopsIn(Recorder):
    """Stops the run once a phase has told so many points of its loss."""

    def __init__(self, phase: str, points: int) -> None:
        super().__init__()
        self.phase, self.most = phase, points

    def should_stop(self) -> bool:
        return sum(f"{self.phase}/loss" in values for _, values in self.points) >= self.most


def told(said: Recorder) -> list[dict[str, Any]]:
    return [data for kind, _, data in said.events if kind == "trials.compared"]


@pytest.fixture(scope="module")
def raced(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillResult, Recorder, Path]:
    said, folder = Recorder(), tmp_path_factory.mktemp("raced")
    return distill(config(place, method={"type": "auto", "race": True}), folder, callbacks=said), said, folder


def test_all_methods_are_tried_and_then_the_better_two(raced: tuple[DistillResult, Recorder, Path]) -> None:
    """Guards successive halving: four methods, then the better two of them on more examples."""
    compared = told(raced[1])
    assert [len(one["scores"]) for one in compared] == [4, 2]
    # An eighth and a quarter of 10 epochs over 96 examples, also where that is more than one epoch.
    assert [one["examples"] for one in compared] == [120, 240]
    first, second = compared[0]["scores"], compared[1]["scores"]
    assert set(second) == set(sorted(first, key=lambda name: -first[name])[:2])  # a stable sort, as in the product


def test_the_events_of_trials_say_what_is_tried_and_what_is_taken(
    raced: tuple[DistillResult, Recorder, Path],
) -> None:
    """Guards against a list of accuracies of "Trial", of which nobody knows what was tried."""
    events = raced[1].events
    named = {message.split(",")[0] for kind, message, data in events if data.get("phase", "").startswith("trial")}
    assert named == {f"Trial of method '{method}'" for method in ("auto", "kd", "theseus", "none")}
    messages = [message for kind, message, _ in events if kind == "trials.compared"]
    best = max(scores := told(raced[1])[1]["scores"], key=lambda name: scores[name])
    assert messages[0].endswith(" go on")
    assert messages[1].endswith(f"; {best} is taken")


def test_the_best_trains_the_student(raced: tuple[DistillResult, Recorder, Path]) -> None:
    """Guards against a race whose end nobody reads."""
    result, said, _ = raced
    methods = told(said)[1]["scores"]
    assert f"method '{result.provenance['method']}'" == max(methods, key=lambda name: methods[name])


class Learnless(Auto):
    """Leaves its student as it began, and so loses every race."""

    def rivals(self) -> tuple[Method, ...]:
        return (FineTuning(),)

    def remarks(self, *, teacher: str, student: str) -> Iterable[str]:
        yield "The student learns nothing."

    def parts(self) -> tuple[Part, ...]:
        return (Part(teacher_logits=True),)

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return TeacherAndLabels(models.student, _Silent(criterion.task), temperature=1, alpha=1)


class _Silent(Criterion):
    def soft(self, logits: Tensor, batch: Batch, temperature: float, **_: Any) -> Term:
        return Term(logits.sum() * 0)


def test_scorecard_card_and_events_tell_of_the_method_that_trained_the_student(place: Path, tmp_path: Path) -> None:
    """Guards a card that says ``auto`` of a student that another method trained, and remarks on what was not done."""
    said = Recorder()
    wanted = config(place, **SHORT).model_copy(update={"method": Learnless()})
    result = distill(wanted, tmp_path, callbacks=said)
    assert [set(one["scores"]) for one in told(said)] == [{"method 'auto'", "method 'none'"}]
    assert (result.scorecard.method, result.scorecard.chosen_method) == ("auto", "none")
    assert "with the method `auto`, which chose `none`." in (result.student / "README.md").read_text()
    assert not any(kind == "method.adapted" for kind, _, _ in said.events)


def test_where_a_race_ends_with_the_method_itself_nothing_else_is_named(
    raced: tuple[DistillResult, Recorder, Path],
) -> None:
    card = raced[0].scorecard
    assert (card.chosen_method or card.method) == raced[0].provenance["method"]
    assert card.chosen_method != card.method


def write_texts(folder: Path) -> Path:
    """Texts without labels, in a split of their own name."""
    folder.mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in docstrings("numbers")[:8])
    (folder / "train.jsonl").write_text(rows, encoding="utf-8")
    return folder


@pytest.mark.parametrize("what", ["unlabelled", "teachers"])
def test_a_race_leaves_out_whom_preflight_refuses_by_name(place: Path, tmp_path: Path, what: str) -> None:
    """Guards against a winner that learns from labels alone, over texts that have none or teachers that nobody asks."""
    document = config(place, method={"type": "auto", "race": True}, **SHORT).model_dump(mode="json")
    if what == "unlabelled":
        source = f"path:{write_texts(tmp_path / 'more')}"
        document["training"]["augmentation"] = [{"type": "unlabelled", "source": source}]
    else:
        second = write_tiny_bert(tmp_path / "second", seed=1)
        document["teacher"]["more"] = [{"source": f"path:{second}", "finetune": document["teacher"]["finetune"]}]
    said = Recorder()
    distill(DistillConfig.parse(document), tmp_path / "job", callbacks=said)
    assert [set(one["scores"]) for one in told(said)] == [{"method 'auto'", "method 'kd'"}]


def test_student_and_baseline_start_from_autos_layers(
    place: Path, raced: tuple[DistillResult, Recorder, Path], tmp_path: Path
) -> None:
    """Guards the start, every n-th layer and the first among them, and the baseline: with another start than the
    student's, gap recovery would compare two things at once. The twin is a job that names the layers."""
    result = raced[0]
    assert result.provenance["student_layers"] == [0, 2]
    twin = distill(config(place, student=[0, 2]), tmp_path)
    assert result.baseline is not None
    assert twin.baseline is not None
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (result.baseline, twin.baseline))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_start_that_is_named_is_taken(place: Path, tmp_path: Path) -> None:
    named = config(place, student={"layers": 2, "init": "uniform"}, evaluation={"baseline": False})
    assert distill(named, tmp_path).provenance["student_layers"] == [1, 3]


def test_an_interrupted_race_goes_on_and_ends_the_same(place: Path, tmp_path: Path) -> None:
    """Guards resuming: a finished trial is read, a broken one goes on, and the student has the same weights."""
    race = config(place, method={"type": "auto", "race": True}, **SHORT)
    whole = distill(race, tmp_path / "whole", callbacks=(undisturbed := Recorder()))
    with pytest.raises(Interrupted):
        distill(race, tmp_path / "broken", callbacks=StopsIn("trial-2", points=5))
    said = Recorder()
    resumed = distill(race, tmp_path / "broken", callbacks=said)
    assert told(said) == told(undisturbed)
    assert not any(kind == "epoch.finished" and data["phase"] == "trial-1" for kind, _, data in said.events)
    ours, theirs = (load_file(one.student / "model.safetensors") for one in (whole, resumed))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_short_training_tries_nothing(place: Path, tmp_path: Path) -> None:
    """Guards the cost: a few steps say nothing, and on a small data set they would be a large part of the job."""
    said = Recorder()
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "max_length": 32}
    short = config(place, method={"type": "auto", "race": True}, training=training)
    result = distill(short, tmp_path, callbacks=said)
    assert told(said) == []
    assert result.provenance["method"] == "auto"


def test_rivals_that_cannot_serve_the_student_are_left_out(place: Path, tmp_path: Path) -> None:
    """Guards the race on a student of another width, which additive theseus cannot put into the teacher."""
    said = Recorder()
    narrow = config(place, method={"type": "auto", "race": True}, student={"layers": 2, "hidden_size": 16, "heads": 2})
    distill(narrow, tmp_path, callbacks=said)
    assert set(told(said)[0]["scores"]) == {"method 'auto'", "method 'kd'", "method 'none'"}
