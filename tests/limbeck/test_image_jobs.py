"""Image classification by the same loop: every method that serves it on every family, and whole jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForImageClassification, pipeline

import limbeck.config
from limbeck import shapes, stages
from limbeck.batches import Collator
from limbeck.callbacks import Callbacks, Stage
from limbeck.checkpoint import CheckpointStore
from limbeck.config import DistillConfig, Student
from limbeck.data import load
from limbeck.device import seed_everything
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidConfig
from limbeck.loop import train
from limbeck.methods.base import Method, Models
from limbeck.model_folder import check_model_folder, model_facts
from limbeck.phase import Phase
from limbeck.pictures import Pictures
from limbeck.preflight import check, serves
from limbeck.progress import Item, forward_work
from limbeck.run import Run
from limbeck.runtime import Predictor, images, stream
from limbeck.runtime.images import Preparation
from limbeck.runtime.picture_inputs import MOST_IMAGES
from limbeck.student_plan import StudentPlan
from limbeck.students import Blueprint
from limbeck.tasks.image_classification import ImageClassification
from limbeck.vocabulary import Vocabulary
from tests.images import FAMILIES, LABELS, png, write_digits, write_image_model
from tests.limbeck.bench import Recorder

TASK = ImageClassification()
METHODS = [get_args(member)[0] for member in get_args(get_args(limbeck.config.Method)[0])]
_NONE = Vocabulary(np.empty(0, dtype=np.int64), 0)


@dataclass(frozen=True)
class Bench:
    """A teacher of a family, and digits as it reads them."""

    folder: Path
    blueprint: Blueprint
    train: Pictures
    validation: Pictures

    def phase(self, method: Method) -> Phase:
        teacher = self.blueprint.load_teacher(keep_head=False).eval().requires_grad_(False)
        options = method.student(Student(layers=3), self.blueprint.layers)
        options = options if method.type != "self" else Student(layers=self.blueprint.layers)
        plan = StudentPlan.of(options, self.blueprint, seed=0)
        student = plan.start(teacher.state_dict())
        batch = Collator(self.train, 0, torch.device("cpu"))(np.arange(len(self.train)))
        with torch.inference_mode():
            logits = teacher(**batch.inputs).logits
        return Phase(
            name="distilling",
            method=method,
            task=TASK,
            models=Models(student, lambda: teacher, plan.matched),
            train=self.train,
            validation=self.validation,
            teacher_logits=logits,
            epochs=1,
            learning_rate=1e-2,
            batch_size=8,
            gradient_accumulation=1,
            warmup_ratio=0.0,
            weight_decay=0.01,
            seed=0,
        )

    def run(self, workdir: Path, phase: Phase) -> Run:
        config = DistillConfig.parse({"teacher": f"path:{self.folder}", "dataset": f"path:{self.folder}"})
        seed_everything(0)
        run = Run(config, workdir, Callbacks(), 60)
        run.meter.plan({phase.name: Item(Stage.DISTILLING, 1e9)}, phase.steps)
        return run


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp(request.param)
    write_image_model(request.param, folder / "teacher")
    corpus = load(
        DistillConfig.parse({"teacher": "a", "dataset": f"path:{write_digits(folder / 'data', 64)}"}).dataset, seed=0
    )
    reading = Preparation.read(folder / "teacher")
    train_split, validation = (TASK.encode(reading, s, LABELS, 0, lambda: None) for s in (corpus.train, corpus.test))
    assert isinstance(train_split, Pictures)
    assert isinstance(validation, Pictures)
    blueprint = Blueprint.read(folder / "teacher", TASK, LABELS, _NONE)
    return Bench(folder, blueprint, train_split.take(np.arange(17)), validation)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_two_steps_a_folder_and_the_same_predictions(bench: Bench, tmp_path: Path, method: type[Method]) -> None:
    """Guards the student as a user gets it: what plain transformers loads answers as the model that was trained; and
    the last batch of a network that has no spread of a single image."""
    facts = model_facts(bench.folder / "teacher")
    if not serves(method(), TASK, shapes.offers(Student(layers=3), facts)):
        pytest.skip("refused in preflight")
    phase = bench.phase(method())
    before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
    student = train(phase, bench.run(tmp_path / "run", phase)).model.eval()
    assert [len(rows) for rows in phase.train.batches(8, seed=0, epoch=0)].count(1) == 0
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    bench.blueprint.save(student, tmp_path / "student")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "student").eval()
    batch = Collator(bench.validation, 0, torch.device("cpu"))(np.arange(len(bench.validation)))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**batch.inputs).logits, student(**batch.inputs).logits)


def test_kd_serves_every_family_and_methods_on_words_none(bench: Bench) -> None:
    """Guards the skips of the test above."""
    offers = shapes.offers(Student(layers=3), model_facts(bench.folder / "teacher"))
    served = {method().type for method in METHODS if serves(method(), TASK, offers)}
    assert served >= {"kd", "self", "noise", "none", "auto"}
    assert not served & {"distilbert", "fastbert", "theseus", "dynabert", "tinybert"}


def test_a_student_of_all_blocks_is_its_teacher(bench: Bench) -> None:
    """Guards the cut: with nothing cut out, and with the layers under their own numbers, the answers are the same."""
    teacher = bench.blueprint.load_teacher(keep_head=False).eval()
    plan = StudentPlan.of(Student(layers=bench.blueprint.layers), bench.blueprint, seed=0)
    student = plan.start(teacher.state_dict()).eval()
    batch = Collator(bench.validation, 0, torch.device("cpu"))(np.arange(4)).inputs
    with torch.inference_mode():
        torch.testing.assert_close(student(**batch).logits, teacher(**batch).logits)


def test_a_cut_resnet_has_the_blocks_that_it_was_cut_from(tmp_path: Path) -> None:
    write_image_model("resnet", tmp_path)
    blueprint = Blueprint.read(tmp_path, TASK, LABELS, _NONE)
    teacher = blueprint.load_teacher(keep_head=False)
    student = StudentPlan.of(Student(layers=(0, 2, 4)), blueprint, seed=0).start(teacher.state_dict())
    assert student.config.depths == [1, 2]
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "resnet.encoder.stages.1.layers.{}.layer.0.convolution.weight"
    assert torch.equal(ours[name.format(1)], theirs[name.format(2)])
    assert not torch.equal(ours[name.format(1)], theirs[name.format(1)])


@pytest.mark.parametrize(
    ("count", "init", "expected"),
    [
        (4, "uniform", (0, 3, 7, 13)),
        (8, "uniform", (0, 2, 3, 6, 7, 9, 12, 13)),
        (8, "first", (0, 1, 3, 4, 7, 8, 9, 13)),
        (8, "last", (0, 2, 3, 6, 7, 11, 12, 13)),
        (16, "skip", tuple(range(16))),
    ],
)
def test_blocks_are_shared_among_stages_as_resnet_50_shares_its_own(
    count: int, init: str, expected: tuple[int, ...]
) -> None:
    """Guards the map of layers: every stage keeps the block that makes its shape."""
    assert stages.blocks_of((3, 4, 6, 3), count, init) == expected


def test_work_is_estimated_for_images(bench: Bench) -> None:
    """Guards progress and time left: a deeper model, and more images, cost more."""
    config = bench.blueprint.config
    some, all_of = bench.train.take(np.arange(4)).lengths, bench.train.lengths
    assert 0 < forward_work(config, 4, some) < forward_work(config, 4, all_of)


def test_pictures_survive_a_checkpoint_and_answers_are_kept_by_their_pixels(bench: Bench) -> None:
    """Guards resume, and the cache of teachers' answers that jobs share: an image has no token ids to tell it by."""
    again = Pictures.from_tensors(bench.train.tensors())
    assert np.array_equal(again.pixels, bench.train.pixels)
    assert np.array_equal(again.labels, bench.train.labels)
    assert len(again) == len(bench.train)
    other = replace(bench.train, pixels=255 - bench.train.pixels)
    kept, changed = bench.train.read(), other.read()
    assert any(not np.array_equal(kept[name], changed[name]) for name in kept)


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
