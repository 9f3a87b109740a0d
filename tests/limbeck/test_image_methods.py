"""Image classification by the same loop: every method that serves it, on every family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

import limbeck.config
from limbeck import shapes, stages
from limbeck.batches import Collator
from limbeck.callbacks import Callbacks, Stage
from limbeck.config import DistillConfig, Student
from limbeck.data import load
from limbeck.device import seed_everything
from limbeck.loop import train
from limbeck.methods.base import Method, Models
from limbeck.model_folder import model_facts
from limbeck.phase import Phase
from limbeck.pictures import Pictures
from limbeck.preflight import serves
from limbeck.progress import Item, forward_work
from limbeck.run import Run
from limbeck.runtime.images import Preparation
from limbeck.student_plan import StudentPlan
from limbeck.students import Blueprint
from limbeck.tasks.image_classification import ImageClassification
from limbeck.vocabulary import Vocabulary
from tests.images import FAMILIES, LABELS, write_digits, write_image_model

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
