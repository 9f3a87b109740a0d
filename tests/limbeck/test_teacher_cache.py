"""The folder of teachers' answers that jobs share: it changes nothing but time, and is never trusted blindly."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from limbeck.answer_files import Answers, Shapes, read_answers
from limbeck.cache import answers_key, predict, teacher_logits
from limbeck.callbacks import Stage
from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import DamagedFile, Interrupted
from limbeck.progress import Item
from limbeck.run import Run
from limbeck.tasks.regression import Regression
from limbeck.teacher_cache import TeacherCache
from tests.limbeck.bench import LABELS, TASK, Bench, Recorder
from tests.tiny import write_tiny_bert, write_tiny_dataset

ONE, OTHER, THIRD = ("1" * 64, "2" * 64, "3" * 64)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def open_run(bench: Bench, workdir: Path, said: Recorder, cache: TeacherCache) -> Run:
    config = DistillConfig.parse({"teacher": f"path:{bench.folder}", "dataset": f"path:{bench.folder}"})
    run = Run(config, workdir, said, 60, cache)
    run.meter.plan({"cache": Item(Stage.DISTILLING, 1e9)}, 0)
    return run


def ask(bench: Bench, workdir: Path, cache: TeacherCache, said: Recorder) -> torch.Tensor:
    run = open_run(bench, workdir, said, cache)
    return teacher_logits(bench.teacher, bench.train, TASK, ONE, len(LABELS), run)


def kinds(said: Recorder) -> list[str]:
    return [kind for kind, _, _ in said.events]


def test_files_are_found_whole_until_the_limit_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """Guards against a folder that grows for ever, and against one that drops what has just been used."""
    values = torch.randn(100, 2)
    cache = TeacherCache(tmp_path, limit=2500)
    for age, key in ((300, ONE), (200, OTHER)):
        assert cache.keep(key, {"logits": values}, 1.5)
        moment = cache.path(key).stat().st_mtime - age
        os.utime(cache.path(key), (moment, moment))
    found = cache.find(ONE, {"logits": (100, 2)})
    assert found is not None
    assert torch.equal(found.answers["logits"], values)
    assert (found.seconds, found.bytes) == (1.5, 800)
    assert cache.keep(THIRD, {"logits": values}, 1.0)
    assert [cache.path(key).exists() for key in (ONE, OTHER, THIRD)] == [True, False, True]
    assert torch.equal(found.answers["logits"], values)
    assert not cache.keep(OTHER, {"logits": torch.randn(1000, 2)}, 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(cache.path(key).name for key in (ONE, THIRD))


@pytest.mark.parametrize("read", [True, False], ids=["while they are read", "before"])
def test_answers_that_another_job_evicts_meanwhile_are_known_all_the_same_or_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: bool
) -> None:
    """Guards a pass of hours that is known: reading its answers takes long enough for another job to make room."""
    values = {"logits": torch.randn(100, 2)}
    cache, used = TeacherCache(tmp_path), list[str]()
    assert cache.keep(ONE, values, 1.5)
    finding = TeacherCache(tmp_path, used=used.append)

    def beside(path: Path, shapes: Shapes) -> tuple[Answers, dict[str, str]]:
        found = read_answers(path, shapes) if read else None
        assert path.stat().st_mtime > 1, "the next to go"
        path.unlink()
        return found or read_answers(path, shapes)

    os.utime(cache.path(ONE), (1, 1))
    monkeypatch.setattr("limbeck.teacher_cache.read_answers", beside)
    known = finding.find(ONE, {"logits": (100, 2)})
    assert (known is not None) == read
    assert known is None or torch.equal(known.answers["logits"], values["logits"])
    assert used == [ONE] * read


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:-8],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_noticed_and_gone(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Guards against a student that learns from a flipped bit."""
    cache = TeacherCache(tmp_path)
    cache.keep(ONE, {"logits": torch.randn(10, 2)}, 1.0)
    cache.path(ONE).write_bytes(damage(cache.path(ONE).read_bytes()))
    with pytest.raises(DamagedFile, match="damaged"):
        cache.find(ONE, {"logits": (10, 2)})
    assert cache.find(ONE, {"logits": (10, 2)}) is None


def test_answers_of_another_shape_are_not_taken(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path)
    cache.keep(ONE, {"logits": torch.randn(10, 2)}, 1.0)
    with pytest.raises(DamagedFile, match=r"\(10, 2\) instead of \(10, 3\)"):
        cache.find(ONE, {"logits": (10, 3)})


def test_each_thing_that_answers_hang_on_is_in_the_key(bench: Bench, tmp_path: Path) -> None:
    """Guards against answers of another teacher, to other texts or of another kind under one key."""
    run = open_run(bench, tmp_path, Recorder(), TeacherCache(tmp_path / "cache"))
    weights = dict(bench.teacher().state_dict())
    config, train = bench.blueprint.config, bench.train

    def key(**changes: Any) -> str:
        given = {"config": config, "weights": weights, "data": train, "task": TASK} | changes
        return answers_key(run, **given)

    tuned = {name: value.clone() for name, value in weights.items()}
    tuned["classifier.bias"][0] += 1e-7
    other_ids, cut = train.ids.copy(), train.starts.copy()
    other_ids[5] += 1
    cut[1] += 1
    activated = bench.blueprint.config.from_dict({**config.to_dict(), "hidden_act": "relu"})
    others = [
        key(weights=tuned),
        key(data=replace(train, ids=other_ids)),
        key(data=replace(train, starts=cut)),
        key(data=replace(train, segments=np.zeros_like(train.ids, dtype=np.int8))),
        key(data=train.take(range(len(train) - 1))),
        key(config=activated),
        key(task=Regression()),
    ]
    assert key() == key(data=replace(train, labels=1 - train.labels))
    assert len({key(), *others}) == 1 + len(others)
    threads, alone = torch.get_num_threads(), key()
    torch.set_num_threads(threads + 1)
    try:
        assert key() != alone
    finally:
        torch.set_num_threads(threads)


def test_a_folder_that_fails_costs_time_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    """Guards the job: a file in the folder's place, and a damaged file, mean that the teacher is asked."""
    (tmp_path / "file").write_text("no folder")
    said = Recorder()
    expected = ask(bench, tmp_path / "a", TeacherCache(tmp_path / "file"), said)
    assert kinds(said) == ["cache.built", "cache.failed"]
    cache = TeacherCache(tmp_path / "cache")
    ask(bench, tmp_path / "b", cache, Recorder())
    cache.path(ONE).write_bytes(cache.path(ONE).read_bytes()[:-3])
    said = Recorder()
    assert torch.equal(ask(bench, tmp_path / "c", cache, said), expected)
    assert kinds(said) == ["cache.damaged", "cache.built"]
    said = Recorder()
    assert torch.equal(ask(bench, tmp_path / "d", cache, said), expected)
    assert kinds(said) == ["cache.used"]


def test_a_fetched_file_counts_against_the_limit(tmp_path: Path) -> None:
    """Guards a machine that only fetches, whose folder would grow for ever."""
    values = torch.randn(100, 2)
    far = TeacherCache(tmp_path / "far")
    near = TeacherCache(tmp_path / "near", limit=2500, fetch=lambda key: far.path(key).rename(near.path(key)))
    for age, key in ((300, ONE), (200, OTHER)):
        assert near.keep(key, {"logits": values}, 1.0)
        moment = near.path(key).stat().st_mtime - age
        os.utime(near.path(key), (moment, moment))
    assert far.keep(THIRD, {"logits": values}, 1.0)
    assert near.find(THIRD, {"logits": (100, 2)}) is not None
    assert [near.path(key).exists() for key in (ONE, OTHER, THIRD)] == [False, True, True]


def test_what_is_missing_is_fetched_and_what_is_there_is_told(bench: Bench, tmp_path: Path) -> None:
    """Guards the two ends that a worker holds: asked once where a file is missing, told of each that is used."""
    near, far = TeacherCache(tmp_path / "near"), TeacherCache(tmp_path / "far")
    expected = ask(bench, tmp_path / "a", far, Recorder())
    fetched, used = [], []

    def fetch(key: str) -> None:
        fetched.append(key)
        near.folder.mkdir()
        far.path(key).rename(near.path(key))

    cache = TeacherCache(near.folder, fetch=fetch, used=used.append)
    for place in ("b", "c"):
        assert torch.equal(ask(bench, tmp_path / place, cache, Recorder()), expected)
    assert (fetched, used) == ([ONE], [ONE, ONE])


def test_a_pass_that_was_interrupted_and_goes_on_leaves_the_whole(bench: Bench, tmp_path: Path) -> None:
    """Guards against a half-filled file, and against one that an attempt leaves before it is done."""
    lengths = np.tile(bench.train.lengths, 10)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    many = replace(bench.train, ids=np.tile(bench.train.ids, 10), starts=starts, labels=np.tile(bench.train.labels, 10))
    cache, teacher = TeacherCache(tmp_path / "cache"), bench.teacher()
    stops = 0
    while stops < 20:
        run = open_run(bench, tmp_path / "job", Recorder(stop_after=1), cache)
        try:
            teacher_logits(lambda: teacher, many, TASK, ONE, len(LABELS), run)
            break
        except Interrupted:
            run.commit()
            stops += 1
            assert not cache.path(ONE).exists()
    assert stops >= 2
    found = cache.find(ONE, {"logits": (len(many), len(LABELS))})
    assert found is not None
    expected = predict(teacher, many, TASK, open_run(bench, tmp_path / "whole", Recorder(), cache))
    assert torch.equal(found.answers["logits"], torch.from_numpy(expected))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[DistillResult, Recorder]]:
    """Runs the same small job, with changes, over one folder of answers."""
    folder = tmp_path_factory.mktemp("jobs")
    teacher, data = write_tiny_bert(folder / "teacher"), write_tiny_dataset(folder / "data", rows=96)

    def run(name: str, cache: TeacherCache | None, **training: Any) -> tuple[DistillResult, Recorder]:
        document = {
            "method": "kd",
            "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 2, "learning_rate": 3e-3}},
            "dataset": {"source": f"path:{data}"},
            "student": [1, 3],
            "training": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32} | training,
            "evaluation": {"baseline": False, "hard_samples": True},
            "export": [],
        }
        said = Recorder()
        return distill(DistillConfig.parse(document), folder / name, callbacks=said, teacher_cache=cache), said

    return run


def test_a_job_that_finds_the_answers_ends_with_the_same_student(
    jobs: Callable[..., tuple[DistillResult, Recorder]], tmp_path: Path
) -> None:
    """Guards the whole chain, bit for bit: a teacher that the job fine-tunes, a folder's file, the table of hard
    samples; and that a job with another loss finds what one with copies of its texts does not."""
    cache = TeacherCache(tmp_path)
    alone, _ = jobs("alone", None)
    first, missed = jobs("first", cache)
    second, found = jobs("second", cache)
    assert ("cache.built" in kinds(missed), "cache.used" in kinds(missed)) == (True, False)
    assert ("cache.built" in kinds(found), "cache.used" in kinds(found)) == (False, True)
    (facts,) = (data for kind, _, data in found.events if kind == "cache.used")
    (cost,) = (data["seconds"] for kind, _, data in missed.events if kind == "cache.built")
    assert facts == {"hits": 96, "misses": 0, "bytes": 96 * 2 * 4, "seconds_saved": cost}
    expected = load_file(alone.student / "model.safetensors")
    for result in (first, second):
        weights = load_file(result.student / "model.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        assert result.hard_samples[1].read_bytes() == alone.hard_samples[1].read_bytes()
    assert "cache.used" in kinds(jobs("other loss", cache, loss={"type": "reverse_kl"})[1])
    assert "cache.built" in kinds(jobs("copies", cache, augmentation=[{"type": "mask_replace", "p": 0.5}])[1])
