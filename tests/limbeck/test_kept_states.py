"""States of the teacher's first token that are kept with its logits: learned from as if it were asked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from limbeck import phases
from limbeck.answering import Answerer
from limbeck.batches import Collator, Encoded
from limbeck.cache import kept_states, predict, teacher_logits
from limbeck.callbacks import Callbacks, Stage
from limbeck.capture import captured
from limbeck.checkpoint import CheckpointStore
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted
from limbeck.gradients import Cut, backward
from limbeck.loop import train
from limbeck.methods.patient import Patient
from limbeck.offer import Part
from limbeck.phase import Phase
from limbeck.phases import states_wanted
from limbeck.progress import Item
from limbeck.run import Run
from limbeck.teacher_cache import TeacherCache
from limbeck.teacher_pass import FirstTokens, answer, answer_all
from tests.families import FAMILIES, write_tiny
from tests.limbeck.bench import LABELS, TASK, Bench, Recorder, is_mapped
from tests.limbeck.test_teacher_pass import Colleague, flip
from tests.tiny import write_tiny_bert, write_tiny_dataset

CPU = torch.device("cpu")
ROWS = 480
KEY = "1" * 64
#: Of the bench: a student of two layers, a teacher of four.
STATES = FirstTokens((2,), 32)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def unwanted() -> PreTrainedModel:
    raise AssertionError("the teacher was loaded")


def ask(bench: Bench, workdir: Path, said: Callbacks, data: Encoded, cache: TeacherCache | None = None) -> Run:
    """The run whose state has the pass."""
    config = DistillConfig.parse({"teacher": f"path:{bench.folder}", "dataset": f"path:{bench.folder}"})
    run = Run(config, workdir, said, 60, cache)
    run.meter.plan({"cache": Item(Stage.DISTILLING, 1e9)}, 0)
    try:
        teacher_logits(bench.teacher, data, TASK, KEY, len(LABELS), run, states=STATES)
    except Interrupted:
        run.commit()
        raise
    return run


def states_of(run: Run) -> Tensor:
    found = kept_states(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def phase(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Phase]:
    """A training that has its states and cannot ask the teacher."""
    states = states_of(ask(bench, tmp_path_factory.mktemp("pass"), Callbacks(), bench.train))

    def made() -> Phase:
        given = bench.phase(Patient())
        return replace(given, models=replace(given.models, teacher=unwanted, states_kept=True), teacher_states=states)

    return made


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_is_that_of_a_teacher_that_is_asked(
    bench: Bench, phase: Callable[[], Phase], tmp_path: Path, accumulation: int
) -> None:
    """Guards the rows and layers of what is kept: loss and gradient, and no teacher in training."""
    rows, found = np.array([0, 11, 5, 14, 2, 9, 7, 3]), []
    for given in (bench.phase(Patient()), phase()):
        objective = given.method.build(given.method.parts()[0], given.models, Criterion(TASK))
        objective.module.eval()
        collate = Collator(given.train, 0, CPU, given.teacher_logits, teacher_states=given.teacher_states)
        sums = backward(objective, collate, rows, Cut(accumulation), 0, 1, bench.run(tmp_path, given))
        gradients = {name: p.grad for name, p in objective.module.named_parameters() if p.grad is not None}
        found.append(gradients | {f"the {name}": value for name, value in sums.items()})
    asked, kept = found
    assert kept.keys() == asked.keys()
    assert kept["the state_loss"] > 0.01
    for name, value in asked.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_run_interrupted_after_every_step_ends_with_equal_weights(
    bench: Bench, phase: Callable[[], Phase], tmp_path: Path
) -> None:
    """Guards "ends with the same weights" of a training whose batches carry states."""
    whole = train(phase(), bench.run(tmp_path / "whole", phase())).model.state_dict()
    for _ in range(200):
        given = phase()
        run = bench.run(tmp_path / "pieces", given, Recorder(stop_after=1))
        try:
            resumed = train(given, run).model.state_dict()
            break
        except Interrupted:
            run.commit()
    assert run.meter.step == given.steps
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_pass_gives_the_logits_of_a_pass_for_logits_alone(family: str, tmp_path: Path) -> None:
    """Guards the bits of logits that two jobs share, and states where the last layer answers from the first token."""
    write_tiny(family, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = np.random.default_rng(0).integers(5, 40, 18).astype(np.int32)
    data = Encoded(ids, None, np.array([0, 7, 12, 18]), np.zeros(3, np.int64))
    collate, rows, places = Collator(data, 0, CPU), np.array([2, 0, 1]), (0, 1, 3, 4)
    with torch.inference_mode():
        found = answer_all(model, collate, rows, TASK, FirstTokens(places, 16))
        assert torch.equal(found["logits"], answer(model, collate, rows, TASK)[1])
        with captured(model) as whole:
            model.base_model(**collate(rows).inputs)
    assert found["states"].shape == (3, 4, 16)
    torch.testing.assert_close(found["states"], torch.stack([whole.hidden(place)[:, 0] for place in places], dim=1))


@pytest.fixture(scope="module")
def many(bench: Bench) -> Encoded:
    """Enough texts for several batches."""
    starts = np.concatenate(([0], np.cumsum(np.tile(bench.train.lengths, 10))))
    ids, labels = np.tile(bench.train.ids, 10), np.tile(bench.train.labels, 10)
    return replace(bench.train, ids=ids, starts=starts, labels=labels)


@pytest.fixture(scope="module")
def whole(bench: Bench, many: Encoded, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return states_of(ask(bench, tmp_path_factory.mktemp("whole"), Callbacks(), many))


def test_a_pass_that_is_stopped_again_and_again_keeps_the_same(
    bench: Bench, many: Encoded, whole: Tensor, tmp_path: Path
) -> None:
    """Guards states that a later attempt forgets, or has of other rows."""
    stops = 0
    while stops < 20:
        try:
            run = ask(bench, tmp_path, Recorder(stop_after=1), many)
            break
        except Interrupted:
            stops += 1
    assert stops >= 2
    assert torch.equal(states_of(run), whole)
    logits = run.store.read_tensors("cache")[0]["logits"]
    other = bench.run(tmp_path / "other", bench.phase())
    assert torch.equal(logits, torch.from_numpy(predict(bench.teacher(), many, TASK, other)))
    assert torch.equal(teacher_logits(unwanted, many, TASK, KEY, len(LABELS), run, states=STATES), logits)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_states_are_mapped_and_outlive_their_file(bench: Bench, tmp_path: Path) -> None:
    """Guards the memory of a training, and of each of several ranks."""
    run = ask(bench, tmp_path, Callbacks(), bench.train)
    states, path = states_of(run), run.store.path("states")
    assert is_mapped(states.data_ptr(), path)
    before = states.clone()
    run.store.drop("states")
    run.commit()
    run.commit()
    assert not path.exists()
    assert torch.equal(states, before)


def test_a_folder_keeps_both_and_a_flipped_bit_of_a_state_is_noticed(bench: Bench, tmp_path: Path) -> None:
    """Guards against a student that learns from a damaged state, and jobs that learn from the logits alone: theirs is
    the file that it always was."""
    cache, said = TeacherCache(tmp_path / "answers"), Recorder()
    first = states_of(ask(bench, tmp_path / "a", Callbacks(), bench.train, cache))
    logits = cache.find(KEY, {"logits": (len(bench.train), len(LABELS))})
    assert logits is not None
    flip(cache.path(STATES.key(KEY)))
    assert torch.equal(states_of(ask(bench, tmp_path / "b", said, bench.train, cache)), first)
    assert torch.equal(states_of(ask(bench, tmp_path / "c", said, bench.train, cache)), first)
    assert [kind for kind, _, _ in said.events] == ["cache.damaged", "cache.built", "cache.used"]
    assert said.events[-1][2]["bytes"] == len(bench.train) * 4 * (len(LABELS) + 32)
    others = (FirstTokens((2, 3), 32), FirstTokens((3,), 32))
    assert len({KEY, *(one.key(KEY) for one in (STATES, *others))}) == 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DistillConfig]:
    """A small job, with changes; its training split is several batches of the teacher's pass."""
    folder = tmp_path_factory.mktemp("jobs")
    teacher, data = write_tiny_bert(folder / "teacher"), write_tiny_dataset(folder / "data", rows=ROWS)
    tuned = {"source": f"path:{teacher}", "finetune": {"epochs": 1, "learning_rate": 5e-3}}

    def made(method: str = "patient", **changes: Any) -> DistillConfig:
        document = {
            "method": method,
            "teacher": tuned,
            "dataset": {"source": f"path:{data}"},
            "student": [1, 3],
            "training": {"epochs": 1, "batch_size": 32, "learning_rate": 3e-3, "max_length": 48},
            "evaluation": {"baseline": False, "hard_samples": False},
            "export": [],
        }
        return DistillConfig.parse(document | changes)

    return made


@pytest.fixture(scope="module")
def alone(job: Callable[..., DistillConfig], tmp_path_factory: pytest.TempPathFactory) -> DistillResult:
    return distill(job(), tmp_path_factory.mktemp("alone"))


def assert_same_student(found: DistillResult, expected: DistillResult) -> None:
    one, other = (load_file(result.student / "model.safetensors") for result in (found, expected))
    assert all(torch.equal(one[name], value) for name, value in other.items())


def said_of(said: Recorder, kind: str) -> list[Mapping[str, Any]]:
    return [data for name, _, data in said.events if name == kind]


def test_jobs_share_states_and_a_job_without_them_the_logits(
    job: Callable[..., DistillConfig], alone: DistillResult, tmp_path: Path
) -> None:
    """Guards the whole chain, bit for bit; and the state, which is not to carry what no phase reads any more."""
    cache, told = TeacherCache(tmp_path / "answers"), []
    for name, method in (("first", "patient"), ("second", "patient"), ("logits alone", "kd")):
        said = Recorder()
        result = distill(job(method), tmp_path / name, callbacks=said, teacher_cache=cache)
        told.append([(kind, data["bytes"]) for kind, _, data in said.events if kind.startswith("cache.")])
        assert not CheckpointStore(tmp_path / name / "state").has("states")
        if method == "patient":
            assert_same_student(result, alone)
    both, logits = ROWS * 4 * (2 + 32), ROWS * 4 * 2
    assert told == [[("cache.built", both)], [("cache.used", both)], [("cache.used", logits)]]


def test_a_job_that_was_helped_ends_with_the_same_student(
    job: Callable[..., DistillConfig], alone: DistillResult, tmp_path: Path
) -> None:
    """Guards a helper that computes other states than were asked for, and a damaged part of theirs."""
    handed: list[Part] = []

    def help_once(offer: Any) -> None:
        if handed:
            return
        handed.extend(offer.left[-2:])
        shutil.copytree(tmp_path / "job" / "state", tmp_path / "helper" / "state")
        answerer = Answerer(job(), tmp_path / "helper", Callbacks(), {}, offer.teacher, offer.key)
        for part in handed:
            answerer.compute(part, said.place.path(offer.key, part), "colleague")
        flip(said.place.path(offer.key, handed[-1]))

    said = Colleague(tmp_path / "job", help_once)
    cache = TeacherCache(tmp_path / "answers", share_seconds=1e-9)
    helped = distill(job(), tmp_path / "job", callbacks=said, teacher_cache=cache)
    assert said.said("cache.helped")[0]["parts"] == {"colleague": 1}
    assert said.said("cache.damaged")[0]["part"] == handed[-1].name
    assert_same_student(helped, alone)


def test_a_stopped_job_goes_on_with_its_states(
    job: Callable[..., DistillConfig], alone: DistillResult, tmp_path: Path
) -> None:
    """Guards an attempt that is stopped within the pass, and ones within the training, which map what the state has."""
    for stop_after in (14, 6, 6, 6, 10_000):
        try:
            found = distill(job(), tmp_path, callbacks=Recorder(stop_after=stop_after))
            break
        except Interrupted:
            continue
    assert_same_student(found, alone)


def test_states_that_take_too_much_room_are_asked_for_in_every_step(
    job: Callable[..., DistillConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards disks and memory: the job says so, and keeps the logits alone."""
    monkeypatch.setattr(phases, "MOST_STATES", ROWS * 4 * 32 - 1)
    said = Recorder()
    distill(job(), tmp_path, callbacks=said)
    assert [data["bytes"] for data in said_of(said, "teacher.live")] == [ROWS * 4 * 32]
    assert [data["bytes"] for data in said_of(said, "cache.built")] == [ROWS * 4 * 2]


def test_of_several_teachers_the_states_are_the_first_ones(job: Callable[..., DistillConfig], tmp_path: Path) -> None:
    said = Recorder()
    first, other = (
        {"source": f"path:{write_tiny_bert(tmp_path / str(seed), seed=seed)}", "finetune": {"learning_rate": 5e-3}}
        for seed in (0, 1)
    )
    distill(job(teacher=first | {"more": [other]}), tmp_path / "job", callbacks=said)
    assert [data["bytes"] for data in said_of(said, "cache.built")] == [ROWS * 4 * (2 + 32), ROWS * 4 * 2]
    large = SimpleNamespace(
        members={"teacher-1": None, "teacher-2": None},
        student=SimpleNamespace(shape=SimpleNamespace(depth=3)),
        blueprint=SimpleNamespace(layers=6, config=SimpleNamespace(hidden_size=384)),
        train=range(67_349),
    )
    assert states_wanted(job(), large, "teacher-1") == FirstTokens((2, 4), 384)  # type: ignore[arg-type]
    assert states_wanted(job(), large, "teacher-2") is None  # type: ignore[arg-type]
    assert states_wanted(job("kd"), large, "teacher-1") is None  # type: ignore[arg-type]
