"""Whole jobs on images, and what makes no sense of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import pipeline

from limbeck.checkpoint import CheckpointStore
from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidConfig
from limbeck.model_folder import check_model_folder, model_facts
from limbeck.preflight import check
from limbeck.runtime import Predictor, images, stream
from limbeck.runtime.images import Preparation
from limbeck.runtime.picture_inputs import MOST_IMAGES
from tests.images import LABELS, png, write_digits, write_image_model
from tests.limbeck.bench import Recorder


def _document(folder: Path, family: str, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": {"source": f"path:{folder / 'teacher'}", "finetune": {"epochs": 8, "learning_rate": 3e-3}},
        "dataset": f"path:{folder / 'data'}",
        "method": "kd",
        "student": 3 if family == "resnet" else 2,
        "training": {"epochs": 2, "learning_rate": 3e-3, "batch_size": 16},
        "export": ["onnx"] if family == "resnet" else ["onnx", "onnx-int8"],
        **changes,
    }


@dataclass(frozen=True)
class Done:
    folder: Path
    document: Mapping[str, Any]
    result: DistillResult
    recorder: Recorder


@pytest.fixture(scope="module", params=["vit", "resnet"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp(f"job-{request.param}")
    write_image_model(request.param, folder / "teacher")
    write_digits(folder / "data", 240)
    document = _document(folder, request.param)
    recorder = Recorder()
    return Done(folder, document, distill(DistillConfig.parse(document), folder / "work", callbacks=recorder), recorder)


def test_a_job_measures_exports_and_shows_hard_samples(done: Done) -> None:
    """Guards the whole way from a file in CIFAR-10's layout to a scorecard."""
    card = done.result.scorecard
    assert (card.task, card.main_metric) == ("image_classification", "accuracy")
    assert card.baseline is not None
    assert card.teacher.metrics["accuracy"].value > 2 * card.dataset.majority
    export, *smaller = card.exports
    assert export.label_agreement == 1
    assert all(one.bytes < export.bytes for one in smaller)
    assert all(one.p50_ms > 0 for model in (card.teacher, card.student, export) for one in model.latency)
    assert card.compression > 1.2
    rows = pyarrow.parquet.read_table(done.result.hard_samples[0]).to_pylist()
    assert {row["label"] for row in rows} <= set(LABELS)
    assert all(row["text"].endswith(".bmp") for row in rows)
    assert card.difficulty is not None
    assert len(card.difficulty.classes) > 5
    assert [p for p in done.recorder.percents if p] == sorted(p for p in done.recorder.percents if p)
    said = dict((kind, message) for kind, message, _ in done.recorder.events)
    assert "240 training, 60 validation and 60 test images of 10 labels" in said["data.loaded"]


def test_the_student_answers_as_it_was_measured_and_as_transformers(done: Done) -> None:
    """Guards serving: the runtime, which has neither torch nor transformers, and their own pipeline give the scores
    that the scorecard's accuracy is made of."""
    student = Predictor.load(done.result.student, threads=1)
    rows = pyarrow.parquet.read_table(done.folder / "data" / "test.parquet").to_pylist()
    data = [row["img"]["bytes"] for row in rows]
    answers = student.predict(data, top_k=1)
    right = [answer["label"] == LABELS[row["label"]] for (answer,), row in zip(answers, rows, strict=True)]
    assert np.mean(right) == pytest.approx(done.result.scorecard.student.metrics["accuracy"].value)
    ask = pipeline("image-classification", model=str(done.result.student))
    for one in data[:5]:
        expected, found = ask(images.opened(one)), student.predict(one)
        assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
        assert [a["score"] for a in found] == pytest.approx([a["score"] for a in expected], abs=1e-4)
    assert 'pipeline("image-classification"' in (done.result.student / "README.md").read_text()
    check_model_folder(done.result.student)


def test_more_images_than_one_call_takes_are_streamed(done: Done) -> None:
    """Guards `limbeck predict --local` over a folder of images: a window of texts is more than a call of images."""
    student = Predictor.load(done.result.student, threads=1)
    rows = pyarrow.parquet.read_table(done.folder / "data" / "train.parquet").to_pylist()
    data = [row["img"]["bytes"] for row in rows[: MOST_IMAGES + 6]]
    found = list(stream(student, data, top_k=1, workers=1))
    assert [one for one, _ in found] == data
    expected = student.predict(data[:MOST_IMAGES], top_k=1) + student.predict(data[MOST_IMAGES:], top_k=1)
    assert [answer for _, answer in found] == expected


def test_a_job_stopped_again_and_again_ends_with_the_same_weights(done: Done, tmp_path: Path) -> None:
    """Guards exact resume, of batch normalisation's running means as well."""
    for attempt in range(100):
        try:
            result = distill(
                DistillConfig.parse(done.document), tmp_path, callbacks=Recorder(stop_after=3 + 7 * (attempt % 3))
            )
            break
        except Interrupted:
            torch.rand(3)
    assert attempt >= 3
    for folder, expected in ((result.student, done.result.student), (result.baseline, done.result.baseline)):
        assert folder is not None
        assert expected is not None
        assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


def test_a_student_of_another_kind_reads_the_images_in_its_own_size(tmp_path: Path) -> None:
    """Guards a ResNet of 16 × 16 pixels under a ViT of 8 × 8: each reads what it was made for, the teacher's answers
    are those to the same images, and int8 is left to a ViT."""
    write_image_model("vit", tmp_path / "teacher")
    write_image_model("resnet", tmp_path / "small", seed=1)
    write_digits(tmp_path / "data", 120)
    changes = {"student": {"source": f"path:{tmp_path / 'small'}"}, "evaluation": {"baseline": False}}
    document = _document(tmp_path, "vit", **changes)
    result = distill(DistillConfig.parse(document), tmp_path / "work")
    assert Preparation.read(result.student).height == 16
    assert result.scorecard.student.architecture == "ResNetForImageClassification"
    assert Predictor.load(result.student, threads=1).predict(png(np.zeros((9, 9))))
    write_image_model("vit", tmp_path / "large", image_size=16)
    other = {"student": {"source": f"path:{tmp_path / 'large'}"}, "method": "patient"}
    refused = DistillConfig.parse(_document(tmp_path, "vit", **other))
    with pytest.raises(InvalidConfig, match="prepares images otherwise than the teacher"):
        distill(refused, tmp_path / "refused")


def test_several_teachers_read_the_images_in_their_own_sizes(tmp_path: Path) -> None:
    """Guards a ViT of 8 × 8 pixels and a ResNet of 16 × 16 that teach together: each is tuned on its own pixels and
    answers to the same images, and a job that is stopped ends with the same weights."""
    write_image_model("vit", tmp_path / "teacher")
    write_image_model("resnet", tmp_path / "other", seed=1)
    write_digits(tmp_path / "data", 160)
    tune = {"epochs": 8, "learning_rate": 3e-3}
    both = {
        "source": f"path:{tmp_path / 'teacher'}",
        "finetune": tune,
        "more": [{"source": f"path:{tmp_path / 'other'}", "finetune": tune}],
        "combine": "confidence",
    }
    config = DistillConfig.parse(_document(tmp_path, "vit", teacher=both, evaluation={"baseline": False}))
    result = distill(config, tmp_path / "work")
    state = CheckpointStore(tmp_path / "work" / "state")
    kept = state.read_tensors("data")[0]
    assert tuple(kept["train.pixels"].shape[1:]) == (3, 8, 8)
    assert tuple(kept["teacher/more/0/train.pixels"].shape[1:]) == (3, 16, 16)
    teachers = result.scorecard.teacher
    assert teachers.metrics["accuracy"].value > 2 * result.scorecard.dataset.majority
    assert [one.architecture for one in result.scorecard.teachers] == [
        "ViTForImageClassification",
        "ResNetForImageClassification",
    ]
    assert Preparation.read(result.student).height == 8
    for attempt in range(100):
        try:
            again = distill(config, tmp_path / "again", callbacks=Recorder(stop_after=5 + 9 * (attempt % 3)))
            break
        except Interrupted:
            torch.rand(3)
    assert attempt >= 3
    assert (again.student / "model.safetensors").read_bytes() == (result.student / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("family", "change", "pointer"),
    [
        ("vit", {"method": "fastbert"}, "/method"),
        ("vit", {"method": "distilbert"}, "/method"),
        ("vit", {"student": {"layers": 2, "vocabulary": "trimmed"}}, "/student/vocabulary"),
        ("vit", {"student": {"architecture": "bilstm"}}, "/student/architecture"),
        ("vit", {"student": {"preset": "T3"}}, "/student/preset"),
        ("vit", {"student": {"layers": 2, "prune": 0.5}}, "/student/prune"),
        ("vit", {"student": {"layers": 2, "hidden_size": 16}}, "/student/hidden_size"),
        ("vit", {"training": {"augmentation": "sentence_shuffle"}}, "/training/augmentation/0"),
        ("resnet", {"method": "minilm"}, "/method"),
        ("resnet", {"student": 1}, "/student/layers"),
        ("resnet", {"student": [1, 2]}, "/student/layers"),
        ("resnet", {"student": {"layers": 3, "hidden_size": 16}}, "/student/hidden_size"),
        ("resnet", {"export": ["onnx-int8"]}, "/export"),
        ("resnet", {"training": {"gradient_accumulation": 2}}, "/training/gradient_accumulation"),
        ("resnet", {"training": {"gradient_accumulation": "auto"}}, "/training/gradient_accumulation"),
        ("resnet", {"training": {"token_budget": 512}}, "/training/token_budget"),
        ("resnet", {"training": {"batch_size": 2}}, "/training/batch_size"),
        ("bert", {}, "/teacher/source"),
    ],
)
def test_what_makes_no_sense_for_images_is_refused_with_its_field(
    tmp_path: Path, family: str, change: dict[str, Any], pointer: str
) -> None:
    """Guards against options that would be passed over in silence."""
    if family == "bert":
        from tests.tiny import write_tiny_bert

        facts = model_facts(write_tiny_bert(tmp_path))
    else:
        facts = model_facts(write_image_model(family, tmp_path))
    document = {"teacher": "org/a", "dataset": "org/b", "method": "kd", **change}
    found = check(DistillConfig.parse(document), teacher=facts, labels=LABELS, task="image_classification")
    assert pointer in [one.pointer for one in found], found
    assert all(one.detail for one in found)


def test_a_further_teacher_that_normalises_batches_asks_for_whole_ones(tmp_path: Path) -> None:
    """Guards a ResNet that is tuned in the job beside a ViT: parts of a batch would be another thing to it."""
    first, other = (model_facts(write_image_model(name, tmp_path / name)) for name in ("vit", "resnet"))
    document = {"teacher": {"source": "org/a", "more": ["org/c"]}, "dataset": "org/b", "method": "kd"}
    config = DistillConfig.parse({**document, "training": {"gradient_accumulation": 2}})
    found = check(config, teacher=first, more=[other], labels=LABELS, task="image_classification")
    assert [one.pointer for one in found] == ["/training/gradient_accumulation"]
    assert not check(config, teacher=first, more=[first], labels=LABELS, task="image_classification")


def test_an_image_teacher_is_refused_for_texts(tmp_path: Path) -> None:
    facts = model_facts(write_image_model("vit", tmp_path))
    config = DistillConfig.parse({"teacher": "org/a", "dataset": "org/b", "method": "kd"})
    (found,) = check(config, teacher=facts, labels=("a", "b"), task="sequence_classification")
    assert (found.pointer, "found a model of the type 'vit'" in found.detail) == ("/teacher/source", True)


def test_the_untrained_teacher_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Guards resume and provenance: the weights that a job starts from are drawn, and never twice otherwise."""
    from limbeck import untrained

    untrained.write(tmp_path)
    again = untrained.untrained_vit()
    assert (tmp_path / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    facts = check_model_folder(again)
    assert (facts.layers, facts.hidden_size, facts.has_head) == (6, 64, False)
    assert json.loads((again / "config.json").read_text())["num_channels"] == 3
