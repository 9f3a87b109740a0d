"""A teacher's pass that others help with: it ends with the same bits, and waits for nobody."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from limbeck.answering import Answerer
from limbeck.batches import Collator, Encoded, forward_batches
from limbeck.cache import predict, teacher_logits
from limbeck.callbacks import Callbacks, Stage
from limbeck.config import DistillConfig
from limbeck.engine import distill
from limbeck.errors import Conflict, Interrupted
from limbeck.offer import PARTS, Offer, OfferFolder, Part
from limbeck.part_files import Computed, write_part
from limbeck.progress import Item
from limbeck.run import Run
from limbeck.teacher_cache import TeacherCache
from limbeck.teacher_pass import answer
from tests.limbeck.bench import LABELS, TASK, Bench, Recorder
from tests.tiny import write_tiny_bert, write_tiny_dataset

KEY = "1" * 64


class Colleague(Recorder):
    """Somebody beside the run, who looks at its offer whenever it asks whether to stop, and does something about it."""

    def __init__(self, workdir: Path, act: Callable[[Offer], None], stop_after: int | None = None) -> None:
        super().__init__(stop_after)
        self.place = OfferFolder(workdir / PARTS)
        self.owns: list[int] = []  #: the part that the run was at, at each look
        self._act = act

    def should_stop(self) -> bool:
        offer = self.place.read()
        if offer is not None:
            assert offer.own is not None
            self.owns.append(offer.own.first)
            self._act(offer)
        return super().should_stop()

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [data for name, _, data in self.events if name == kind]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def many(bench: Bench) -> Encoded:
    """Enough texts for eight batches and more."""
    times = 24
    starts = np.concatenate(([0], np.cumsum(np.tile(bench.train.lengths, times))))
    ids, labels = np.tile(bench.train.ids, times), np.tile(bench.train.labels, times)
    found = replace(bench.train, ids=ids, starts=starts, labels=labels)
    assert len(forward_batches(found.lengths)) >= 8
    return found


def run_pass(bench: Bench, many: Encoded, said: Colleague, workdir: Path, share: float | None = 1e-9) -> torch.Tensor:
    """The pass; with the smallest limit it is offered after its first batch, each batch a part."""
    config = DistillConfig.parse({"teacher": f"path:{bench.folder}", "dataset": f"path:{bench.folder}"})
    cache = TeacherCache(workdir.with_name(f"{workdir.name}-answers"), share_seconds=share)
    run = Run(config, workdir, said, 60, cache)
    run.meter.plan({"cache": Item(Stage.DISTILLING, 1e9)}, 0)
    try:
        return teacher_logits(bench.teacher, many, TASK, KEY, len(LABELS), run)
    except Interrupted:
        run.commit()
        raise


@torch.inference_mode()
def hand_in(bench: Bench, many: Encoded, place: OfferFolder, part: Part, key: str = KEY) -> Path:
    """Compute a part as another worker does."""
    collate = Collator(many, 0, torch.device("cpu"))
    rows = forward_batches(many.lengths)[part.first : part.end]
    logits = torch.cat([answer(bench.teacher(), collate, one, TASK)[1] for one in rows])
    path = place.path(key, part)
    write_part(path, key, part, Computed({"logits": logits}, 2.5, "colleague"))
    return path


@pytest.fixture(scope="module")
def expected(bench: Bench, many: Encoded, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    run = bench.run(tmp_path_factory.mktemp("alone"), bench.phase())
    return torch.from_numpy(predict(bench.teacher(), many, TASK, run))


def nothing(offer: Offer) -> None:
    """Let the run do it all."""


def test_what_is_handed_in_is_not_computed_again(
    bench: Bench, many: Encoded, expected: torch.Tensor, tmp_path: Path
) -> None:
    """Guards the answers' places, and what is told: who did how much, and what it saved."""
    handed: list[Part] = []

    def help_once(offer: Offer) -> None:
        if not handed:
            handed.extend(offer.left[-3:])
            for part in handed:
                hand_in(bench, many, said.place, part)

    said = Colleague(tmp_path / "job", help_once)
    assert torch.equal(run_pass(bench, many, said, tmp_path / "job"), expected)
    batches = len(forward_batches(many.lengths))
    assert said.asked == batches - 3
    (offered,), (helped,) = said.said("cache.offered"), said.said("cache.helped")
    assert offered["parts"] == batches - 1
    rows = sum(len(forward_batches(many.lengths)[part.first]) for part in handed)
    assert helped == {"parts": {"colleague": 3}, "examples": rows, "seconds_saved": 7.5}
    assert said.place.read() is None, "the offer still stands"
    assert said.percents == sorted(said.percents)


@pytest.mark.parametrize("share", [None, 3600.0])
def test_a_short_pass_is_not_offered(
    bench: Bench, many: Encoded, expected: torch.Tensor, tmp_path: Path, share: float | None
) -> None:
    said = Colleague(tmp_path / "job", nothing)
    assert torch.equal(run_pass(bench, many, said, tmp_path / "job", share), expected)
    assert (said.owns, said.said("cache.offered")) == ([], [])


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def swap(path: Path) -> None:
    """The answers to other texts, whole and with the right hash."""
    other = max(path.parent.iterdir(), key=lambda one: one.name != path.name)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [flip, cut, swap])
def test_a_damaged_part_is_noticed_and_computed_here(
    bench: Bench, many: Encoded, expected: torch.Tensor, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Guards against a student that learns from a flipped bit, or from the answers to other texts."""
    handed: list[Path] = []

    def help_badly(offer: Offer) -> None:
        if not handed:
            handed.extend(hand_in(bench, many, said.place, part) for part in offer.left[-2:])
            damage(handed[-1])

    said = Colleague(tmp_path / "job", help_badly)
    assert torch.equal(run_pass(bench, many, said, tmp_path / "job"), expected)
    (told,) = said.said("cache.damaged")
    assert told["part"] == handed[-1].name
    (helped,) = said.said("cache.helped")
    assert helped["parts"] == {"colleague": 1}


def test_the_run_takes_what_nobody_is_at_and_waits_for_nobody(
    bench: Bench, many: Encoded, expected: torch.Tensor, tmp_path: Path
) -> None:
    """Guards against helpers that never come: what they hold is computed last, and here."""

    def hold(offer: Offer) -> None:
        said.place.say_held([2, 3])

    said = Colleague(tmp_path / "job", hold)
    assert torch.equal(run_pass(bench, many, said, tmp_path / "job"), expected)
    batches = len(forward_batches(many.lengths))
    assert said.owns == [1, *range(4, batches), 2, 3]
    assert said.said("cache.helped") == []


def test_a_pass_that_is_stopped_goes_on_with_the_parts_that_it_has(
    bench: Bench, many: Encoded, expected: torch.Tensor, tmp_path: Path
) -> None:
    """Guards against finished parts that are computed again, and against other parts under the same names."""
    offers: list[Offer] = []

    def help_once(offer: Offer) -> None:
        if not offers:
            hand_in(bench, many, first.place, offer.left[-1])
        offers.append(offer)

    first = Colleague(tmp_path / "job", help_once, stop_after=4)
    with pytest.raises(Interrupted):
        run_pass(bench, many, first, tmp_path / "job")
    shutil.rmtree(first.place.folder)  # as another machine has it
    second = Colleague(tmp_path / "job", offers.append)
    assert torch.equal(run_pass(bench, many, second, tmp_path / "job"), expected)
    batches = len(forward_batches(many.lengths))
    assert (first.asked - 1) + second.asked == batches - 1
    assert {part for offer in offers for part in offer.left} == set(offers[0].left)
    (helped,) = second.said("cache.helped")
    assert helped["parts"] == {"colleague": 1}
    (built,) = second.said("cache.built")
    assert built["hits"] + built["misses"] == len(many)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    """A small job whose training split is several batches."""
    folder = tmp_path_factory.mktemp("jobs")
    teacher, data = write_tiny_bert(folder / "teacher"), write_tiny_dataset(folder / "data", rows=480)
    document = {
        "method": "kd",
        "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 1, "learning_rate": 5e-3}},
        "dataset": {"source": f"path:{data}"},
        "student": [1, 3],
        "training": {"epochs": 1, "batch_size": 32, "learning_rate": 3e-3, "max_length": 48},
        "evaluation": {"baseline": False, "hard_samples": False},
        "export": [],
    }
    return DistillConfig.parse(document)


def test_a_job_that_was_helped_ends_with_the_same_student(config: DistillConfig, tmp_path: Path) -> None:
    """Guards the whole chain, bit for bit: a helper that has no more than the job's state, and its student."""
    alone = distill(config, tmp_path / "alone")
    handed: list[Part] = []

    def help_once(offer: Offer) -> None:
        if handed:
            return
        handed.extend(offer.left[-2:])
        shutil.copytree(tmp_path / "job" / "state", tmp_path / "helper" / "state")
        given = (config, tmp_path / "helper", Callbacks(), {}, offer.teacher)
        with pytest.raises(Conflict, match="would answer as"):
            Answerer(*given, "f" * 64)
        answerer = Answerer(*given, offer.key)
        for part in handed:
            answerer.compute(part, said.place.path(offer.key, part), "colleague")

    said = Colleague(tmp_path / "job", help_once)
    cache = TeacherCache(tmp_path / "answers", share_seconds=1e-9)
    helped = distill(config, tmp_path / "job", callbacks=said, teacher_cache=cache)
    (told,) = said.said("cache.helped")
    assert told["parts"] == {"colleague": 2}
    weights, right = (load_file(one.student / "model.safetensors") for one in (helped, alone))
    assert all(torch.equal(weights[name], value) for name, value in right.items())


def test_a_state_without_a_teacher_is_of_no_use(config: DistillConfig, tmp_path: Path) -> None:
    """Guards against a helper that prepares the data set anew and fine-tunes a teacher of its own."""
    with pytest.raises(Conflict, match="no data"):
        Answerer(config, tmp_path, Callbacks(), {}, "teacher", KEY)
