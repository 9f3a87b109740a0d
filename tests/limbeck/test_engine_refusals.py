"""Whole jobs that cannot go well: what is refused, and what the error names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.engine import distill, failures_named
from limbeck.errors import (
    Diverged,
    InvalidConfig,
    InvalidModel,
    OutOfMemory,
    TeacherUnfit,
)
from tests.limbeck.bench import Recorder
from tests.limbeck.place import LABELS, Place
from tests.tiny import write_tiny_bert, write_tiny_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(write_tiny_bert(folder / "teacher"), write_tiny_dataset(folder / "data", rows=96, labels=LABELS))


def test_a_teacher_of_other_labels_is_refused_or_gets_a_new_head(place: Place, tmp_path: Path) -> None:
    teacher = write_tiny_bert(tmp_path / "teacher", labels=("cat", "dog", "cow"))
    with pytest.raises((InvalidModel, InvalidConfig), match="cat"):
        distill(place.config(teacher=f"path:{teacher}"), tmp_path / "refused")
    document = {"source": f"path:{teacher}", "finetune": {"epochs": 2, "learning_rate": 3e-3}}
    result = distill(place.config(teacher=document, evaluation={"baseline": False}), tmp_path / "tuned")
    assert result.teacher.finetuned
    assert result.scorecard.dataset.labels == LABELS


def test_a_teacher_that_only_guesses_is_unfit(place: Place, tmp_path: Path) -> None:
    """Guards against distilling a head that nobody trained."""
    teacher = write_tiny_bert(tmp_path / "teacher", labels=LABELS)
    weights = load_file(teacher / "model.safetensors")
    weights["classifier.weight"].zero_()
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherUnfit, match=r"50.0 %.*most common answer.*teacher\.finetune"):
        distill(place.config(teacher=f"path:{teacher}"), tmp_path / "work")


def test_outputs_without_names_are_said_to_be_taken_in_order(place: Place, tmp_path: Path) -> None:
    """Guards against "nothing to learn" of a good teacher whose LABEL_0 means what the data set has second."""
    teacher, said = write_tiny_bert(tmp_path / "teacher", labels=("LABEL_0", "LABEL_1")), Recorder()
    weights = load_file(teacher / "model.safetensors")
    weights["classifier.weight"].zero_()
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(TeacherUnfit, match=r"\('LABEL_0' is 'gui', 'LABEL_1' is 'networking'\).*id2label"):
        distill(place.config(teacher=f"path:{teacher}"), tmp_path / "work", callbacks=said)
    told = [message for kind, message, _ in said.events if kind == "teacher.placed"]
    assert [message.partition("which: ")[2] for message in told] == ["'LABEL_0' is 'gui', 'LABEL_1' is 'networking'."]


def test_a_teacher_of_nan_is_refused_before_anything_learns_from_it(place: Place, tmp_path: Path) -> None:
    teacher = write_tiny_bert(tmp_path / "teacher", labels=LABELS)
    weights = load_file(teacher / "model.safetensors")
    weights["classifier.weight"][0] = float("nan")
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(Diverged, match="teacher's logits"):
        distill(place.config(teacher=f"path:{teacher}"), tmp_path / "work")


def test_a_student_that_lacks_weights_is_refused_before_its_teacher_is_trained(place: Place, tmp_path: Path) -> None:
    """Guards an hour of fine-tuning whose end is an error that could have been told at once, and at no field."""
    student, said = write_tiny_bert(tmp_path / "student"), Recorder()
    weights = load_file(student / "model.safetensors")
    whole = {name: value for name, value in weights.items() if "layer.1.output.dense" not in name}
    save_file(whole, student / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidModel, match=r"layer\.1\.output\.dense") as caught:
        distill(place.config(student={"source": f"path:{student}"}), tmp_path / "work", callbacks=said)
    assert [one.pointer for one in caught.value.problems] == ["/student/source"]
    assert "epoch.finished" not in [kind for kind, _, _ in said.events]


def test_a_bare_encoder_has_to_be_fine_tuned(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        distill(place.config(teacher={"source": f"path:{place.teacher}", "finetune": False}), tmp_path)
    assert caught.value.problems[0].pointer == "/teacher/finetune"


def test_a_student_deeper_than_its_teacher_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        distill(place.config(student=5), tmp_path)
    assert caught.value.problems[0].pointer == "/student/layers"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_named(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match="batch_size"), failures_named():
        raise error
