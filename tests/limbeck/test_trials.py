"""Trials: what is tried, how the best is found, that nothing is tried twice, and that the student gets the choice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file
from torch import Tensor

from limbeck.batches import Batch
from limbeck.config import DistillConfig, Student
from limbeck.criterion import Criterion
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted
from limbeck.methods.auto import Auto
from limbeck.methods.base import Method, Models, Objective, Part, Term
from limbeck.methods.kd import TeacherAndLabels
from limbeck.methods.none import FineTuning
from limbeck.shapes import student_layers
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
        # With batches of 3 a sixteenth of 10 epochs is 20 steps; an eighth and a quarter are more than one epoch each.
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


def test_the_start_and_then_the_method_are_tried(raced: tuple[DistillResult, Recorder, Path]) -> None:
    """Guards successive halving: two starts, then four methods, then the better two of them on more examples."""
    compared = told(raced[1])
    assert [len(one["scores"]) for one in compared] == [2, 4, 2]
    # A sixteenth, an eighth and a quarter of 10 epochs over 96 examples, also where that is more than one epoch.
    assert [one["examples"] for one in compared] == [60, 120, 240]
    assert set(compared[0]["scores"]) == {"start 'uniform'", "start 'first'"}
    first, second = compared[1]["scores"], compared[2]["scores"]
    assert set(second) == set(sorted(first, key=lambda name: -first[name])[:2])  # a stable sort, as in the product


def test_the_events_of_trials_say_what_is_tried_and_what_is_taken(
    raced: tuple[DistillResult, Recorder, Path],
) -> None:
    """Guards against a list of accuracies of "Trial", of which nobody knows what was tried."""
    events = raced[1].events
    named = {message.split(",")[0] for kind, message, data in events if data.get("phase", "").startswith("trial")}
    assert named == {
        *(f"Trial of start '{start}'" for start in ("uniform", "first")),
        *(f"Trial of method '{method}'" for method in ("auto", "kd", "theseus", "none")),
    }
    messages = [message for kind, message, _ in events if kind == "trials.compared"]
    best = [max(one["scores"], key=lambda name: one["scores"][name]) for one in told(raced[1])]
    assert messages[0].endswith(f"; {best[0]} is taken")
    assert messages[1].endswith(" go on")
    assert messages[2].endswith(f"; {best[2]} is taken")


def test_the_choice_is_the_best_and_reaches_the_student(raced: tuple[DistillResult, Recorder, Path]) -> None:
    """Guards against a probe whose answer nobody reads."""
    result, said, _ = raced
    starts, methods = told(said)[0]["scores"], told(said)[2]["scores"]
    layers = {"start 'uniform'": [1, 3], "start 'first'": [0, 1]}[max(starts, key=lambda name: starts[name])]
    assert result.provenance["student_layers"] == layers
    assert f"method '{result.provenance['method']}'" == max(methods, key=lambda name: methods[name])


class Learnless(Auto):
    """Leaves its student as it began, and so loses every race."""

    starts: ClassVar[tuple[str, ...]] = ()

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


def test_a_named_start_is_not_tried_and_student_and_baseline_share_the_found_one(
    place: Path, raced: tuple[DistillResult, Recorder, Path], tmp_path: Path
) -> None:
    """Guards the baseline: with another start than the student's, gap recovery would compare two things at once. The
    twin is a job that names the layers that the trials found: the same baseline, to the bit."""
    result = raced[0]
    said = Recorder()
    twin = distill(config(place, student=result.provenance["student_layers"]), tmp_path, callbacks=said)
    assert told(said) == []
    assert result.baseline is not None
    assert twin.baseline is not None
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (result.baseline, twin.baseline))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_an_interrupted_trial_goes_on_and_ends_the_same(place: Path, tmp_path: Path) -> None:
    """Guards resuming: a finished trial is read, a broken one goes on, and the student has the same weights."""
    whole = distill(config(place), tmp_path / "whole", callbacks=(undisturbed := Recorder()))
    with pytest.raises(Interrupted):
        distill(config(place), tmp_path / "broken", callbacks=StopsIn("trial-2", points=5))
    said = Recorder()
    resumed = distill(config(place), tmp_path / "broken", callbacks=said)
    assert told(said) == told(undisturbed)
    assert not any(kind == "epoch.finished" and data["phase"] == "trial-1" for kind, _, data in said.events)
    ours, theirs = (load_file(one.student / "model.safetensors") for one in (whole, resumed))
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_short_training_tries_nothing(place: Path, tmp_path: Path) -> None:
    """Guards the cost: a few steps say nothing, and on a small data set they would be a large part of the job."""
    said = Recorder()
    short = config(place, training={"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "max_length": 32})
    result = distill(short, tmp_path, callbacks=said)
    assert told(said) == []
    assert "student_layers" not in result.provenance


def test_rivals_that_cannot_serve_the_student_are_left_out(place: Path, tmp_path: Path) -> None:
    """Guards the race on a student of another width, which additive theseus cannot put into the teacher."""
    said = Recorder()
    narrow = config(place, method={"type": "auto", "race": True}, student={"layers": 2, "hidden_size": 16, "heads": 2})
    distill(narrow, tmp_path, callbacks=said)
    assert set(told(said)[1]["scores"]) == {"method 'auto'", "method 'kd'", "method 'none'"}


def test_autos_first_start_is_the_one_that_an_unsettled_student_gets() -> None:
    """Guards the plan: progress, preflight and a job without trials all resolve the student with no start named."""
    assert student_layers(Student(layers=2, init=Auto.starts[0]), 6) == student_layers(Student(layers=2), 6)  # type: ignore[arg-type]
