"""Teachers' answers on their way between a machine's folder and the storage: never in the way of a job."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import Unavailable
from models.storage import LocalStorage
from models.storage.base import Entry
from tests.worker.processes import until
from worker.answers import AnswersPorter

KEY = "a" * 64
STORED = f"cache/teacher/{KEY}/answers.safetensors"


class Away(LocalStorage):
    """A storage that does not answer."""

    def size(self, key: str) -> int:
        raise Unavailable("away")

    def list(self, prefix: str = "") -> Iterator[Entry]:
        raise Unavailable("away")


class Broken(LocalStorage):
    """A storage whose client fails in a way that it never should."""

    def size(self, key: str) -> int:
        raise RuntimeError("never seen")


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def porter(storage: LocalStorage, place: Path) -> AnswersPorter:
    """Of a machine with this place."""
    aside = place / "job"
    aside.mkdir(parents=True, exist_ok=True)
    found = AnswersPorter(storage, place / "answers", aside)
    found.start()
    return found


def file(place: Path) -> Path:
    return place / "answers" / f"{KEY}.safetensors"


def carry(porter: AnswersPorter) -> None:
    porter.finish(lambda: True)


def test_what_one_machine_wrote_another_fetches(storage: LocalStorage, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    giver = porter(storage, one)
    file(one).parent.mkdir()
    file(one).write_bytes(b"answers")
    giver.used(KEY)
    carry(giver)
    taker = porter(storage, other)
    taker.wanted(KEY)
    assert until(taker.arrived) == [KEY]
    carry(taker)
    assert file(other).read_bytes() == b"answers"
    assert list((other / "job").iterdir()) == []


def test_who_waits_is_told_when_there_is_nothing_or_no_storage(storage: LocalStorage, tmp_path: Path) -> None:
    """Guards against a trainer that waits for an answer that never comes, and against keys that are paths."""
    for number, (place, key) in enumerate([(storage, KEY), (Away(tmp_path / "away"), KEY), (storage, "../../etc")]):
        asked = porter(place, tmp_path / str(number))
        asked.wanted(key)
        asked.used(key)  # of a file that is not there, or cannot be stored
        assert until(asked.arrived) == [key]
        carry(asked)
        assert not (tmp_path / str(number) / "answers").exists()


def test_who_waits_is_told_after_an_error_that_nobody_thought_of(storage: LocalStorage, tmp_path: Path) -> None:
    """Guards against a thread that dies of it, and a trainer that waits for what it asks for next."""
    asked = porter(Broken(tmp_path / "broken"), tmp_path)
    for _ in range(2):
        asked.wanted(KEY)
        assert until(asked.arrived) == [KEY]
    carry(asked)


def test_nothing_is_fetched_for_an_attempt_that_is_over(storage: LocalStorage, tmp_path: Path) -> None:
    """Guards against its folder coming back, which no sweep knows."""
    (tmp_path / "storage" / STORED).parent.mkdir(parents=True)
    (tmp_path / "storage" / STORED).write_bytes(b"answers")
    late = porter(storage, tmp_path / "here")
    (tmp_path / "here" / "job").rmdir()
    late.wanted(KEY)
    assert until(late.arrived) == [KEY]
    carry(late)
    assert not (tmp_path / "here" / "job").exists()


def test_use_keeps_a_stored_file_young_and_stores_it_once_a_day(storage: LocalStorage, tmp_path: Path) -> None:
    """Guards `limbeck gc`, which goes by the object's age, and the storage from a copy with every job."""
    (tmp_path / "answers").mkdir()
    file(tmp_path).write_bytes(b"answers")
    stored = tmp_path / "storage" / STORED
    ages = {}
    for age in (0, 3600, 2 * 86400):
        if stored.exists():
            moment = time.time() - age
            os.utime(stored, (moment, moment))
        user = porter(storage, tmp_path)
        user.used(KEY)
        carry(user)
        ages[age] = round(time.time() - stored.stat().st_mtime, -2)
    assert ages == {0: 0, 3600: 3600, 2 * 86400: 0}
