"""What a job goes on from: stored before the row names it, kept while the row names it, checked when it is fetched."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import StorageFull, Unavailable
from models.db import Database
from models.job import Job, JobStatus
from models.repository import jobs, telemetry
from models.settings import Settings
from models.storage import Stored, Watch, unwatched
from models.storage.local import LocalStorage
from tests.worker.conftest import STAND_IN, claim_one, read, steal, submit
from tests.worker.processes import in_background, until
from tests.worker.stand_in_trainer import save
from worker import endings
from worker.checkpoints import Courier
from worker.lease import Claim, commit_checkpoint
from worker.queue import Bell
from worker.service import Worker
from worker.slots import Slots


class Failing(LocalStorage):
    """A storage that takes so many files of ``checkpoints`` or of ``attempts``, and then fails as it is told."""

    def __init__(self, root: Path, error: Exception, *, of: str, after: int) -> None:
        super().__init__(root)
        self._error, self._of, self._left = error, of, after

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        if key.split("/")[2] == self._of:
            self._left -= 1
            if self._left < 0:
                raise self._error
        return super().put_file(path, key, move=move, watch=watch)


def failing(settings: Settings, error: Exception, *, of: str, after: int) -> Failing:
    return Failing(settings.data_dir / "storage", error, of=of, after=after)


def worker_on(storage: LocalStorage, settings: Settings, database: Database) -> Worker:
    return Worker(settings, database, storage, Bell(settings), Slots(1), command=STAND_IN)


def events(database: Database, job_id: str) -> list[str]:
    with database.reading() as session:
        return [event.kind for event in telemetry.events_after(session, job_id, 0, 1000)]


def test_a_full_storage_fails_the_job_cleanly_and_keeps_the_last_good_checkpoint(
    settings: Settings, database: Database
) -> None:
    """Guards against a job that trains for hours without a checkpoint, and against one that loses its last."""
    storage = failing(settings, StorageFull("The bucket takes no more bytes."), of="checkpoints", after=2)
    job = submit(database, max_attempts=1, does={"steps": 10_000})
    worker_on(storage, settings, database).drain()
    ended = read(database, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error == {"code": "storage_full", "message": "The bucket takes no more bytes.", "retryable": True}
    assert ended.checkpoint is not None
    assert all(storage.exists(key) for key in jobs.checkpoint_keys(ended.checkpoint))
    assert events(database, job.id).count("checkpoint.saved") == 2

    storage._left = 1_000_000
    with database.session() as session:
        jobs.resume(session, job.id)
    running = in_background(worker := worker_on(storage, settings, database))
    until(lambda: read(database, job.id).fence == 2)
    worker.stop()
    running.join(10)
    with database.reading() as session:
        _, again = telemetry.attempts(session, job.id)
    assert (again.resumed_from_step, again.outcome) == (ended.checkpoint["step"], "handed_back")


def test_a_student_that_could_not_be_stored_is_stored_by_the_next_attempt(
    settings: Settings, database: Database
) -> None:
    storage = failing(settings, Unavailable("The bucket does not answer."), of="attempts", after=1)
    job = submit(database, does={"steps": 3})
    running = in_background(worker_on(storage, settings, database))
    until(lambda: "job.retrying" in events(database, job.id))
    storage._left = 100
    running.join()
    assert read(database, job.id).status is JobStatus.SUCCEEDED


def test_a_storage_that_is_away_does_not_stop_the_training(settings: Settings, database: Database) -> None:
    storage = failing(settings, Unavailable("The bucket does not answer."), of="checkpoints", after=0)
    job = submit(database, does={"steps": 40})
    worker_on(storage, settings, database).drain()
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert "checkpoint.saved" not in events(database, job.id)


def test_a_damaged_checkpoint_is_not_gone_on_from(worker: Worker, database: Database, storage: LocalStorage) -> None:
    """Guards against a student that was made from half a file."""
    job = submit(database, does={"steps": 60, "seconds": 0.02})
    running = in_background(worker)
    until(lambda: "checkpoint.saved" in events(database, job.id))
    with database.session() as session:
        jobs.request_pause(session, job.id)
    running.join()
    paused = read(database, job.id)
    assert paused.checkpoint is not None
    (key,) = jobs.checkpoint_keys(paused.checkpoint)
    path = storage.local_path(key)
    assert path is not None
    path.write_bytes(b"1")
    with database.session() as session:
        jobs.resume(session, job.id)
    worker.drain()
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert "checkpoint.damaged" in events(database, job.id)


def test_a_fresh_start_does_not_name_the_damaged_file_again(
    settings: Settings, database: Database, storage: LocalStorage
) -> None:
    """Guards against a job that starts over in every attempt: done again from the beginning, the same step has the same
    bytes, and they were taken for stored already."""
    every_step = settings.model_copy(update={"checkpoint_seconds": 1e-6})
    job = submit(database, does={"steps": 100, "at": 5, "hang": 600})

    def run_to_step_5(but_not: dict[str, Any] | None) -> dict[str, Any]:
        worker = worker_on(storage, every_step, database)
        running = in_background(worker)

        def saved() -> dict[str, Any] | None:
            found = read(database, job.id).checkpoint
            return found if found and found["step"] == 5 and found != but_not else None

        checkpoint: dict[str, Any] = until(saved)
        worker.stop()
        worker.stop()
        running.join(10)
        return checkpoint

    first = run_to_step_5(None)
    (key,) = jobs.checkpoint_keys(first)
    damaged = storage.local_path(key)
    assert damaged is not None
    damaged.write_bytes(b"1")
    second = run_to_step_5(first)
    assert "checkpoint.damaged" in events(database, job.id)
    assert [b"".join(storage.open(key)) for key in jobs.checkpoint_keys(second)] == [b"5"]


@pytest.fixture
def held(database: Database) -> Claim:
    submit(database)
    claimed = claim_one(database)
    assert claimed is not None
    return claimed


def courier(storage: LocalStorage, database: Database, held: Claim, state: Path, known: Any = None) -> Courier:
    return Courier(storage, database, held.lease, state, known)


def test_only_the_newest_checkpoint_is_kept(
    storage: LocalStorage, database: Database, held: Claim, tmp_path: Path
) -> None:
    """Guards against a bucket that fills up with the checkpoints of one job."""
    carrier = courier(storage, database, held, tmp_path)
    for step in (1, 2, 3):
        save(tmp_path, step)
        carrier.finish()
    checkpoint = read(database, held.job.id).checkpoint
    assert checkpoint is not None
    assert (checkpoint["step"], checkpoint["version"]) == (3, 1)
    assert [entry.key for entry in storage.list("jobs")] == jobs.checkpoint_keys(checkpoint)


def test_a_checkpoint_that_could_not_be_stored_does_not_wait_for_the_next_one(
    settings: Settings, database: Database, held: Claim, tmp_path: Path
) -> None:
    """Guards against a short absence of the bucket or the database that costs a second interval of steps."""
    storage = failing(settings, Unavailable("The bucket does not answer."), of="checkpoints", after=0)
    carrier = courier(storage, database, held, tmp_path)
    save(tmp_path, 1)
    carrier.start()
    carrier.notice()
    until(lambda: storage._left < 0)
    storage._left = 100
    until(lambda: read(database, held.job.id).checkpoint)
    carrier.finish()


def test_a_late_worker_neither_replaces_nor_deletes_its_successors_checkpoint(
    storage: LocalStorage, database: Database, held: Claim, tmp_path: Path
) -> None:
    """Guards against the one delete that is not fenced: an object's, in the storage."""
    late = courier(storage, database, held, tmp_path / "late")
    save(tmp_path / "late", 1)
    late.finish()
    successor = steal(database, held.job.id)
    heir = courier(storage, database, successor, tmp_path / "heir", successor.job.checkpoint)
    save(tmp_path / "heir", 2)
    heir.finish()
    save(tmp_path / "heir", 1)  # the same bytes as the late worker's, which the heir has replaced meanwhile
    heir.finish()
    save(tmp_path / "late", 3)
    late.finish()
    checkpoint = read(database, held.job.id).checkpoint
    assert checkpoint is not None
    assert checkpoint["step"] == 1
    assert all(storage.exists(key) for key in jobs.checkpoint_keys(checkpoint))


class Once(LocalStorage):
    """A storage that is away for the next checkpoint, when told so, and then there again."""

    away = 0
    of = "checkpoints"

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        self._answer(key)
        return super().put_file(path, key, move=move, watch=watch)

    def get_file(self, key: str, path: Path, *, watch: Watch = unwatched) -> None:
        self._answer(key)
        super().get_file(key, path, watch=watch)

    def _answer(self, key: str) -> None:
        if key.split("/")[2] == self.of and self.away:
            self.away -= 1
            raise Unavailable("The bucket does not answer.")


def test_a_short_absence_at_an_attempts_end_costs_no_step(settings: Settings, database: Database) -> None:
    """Guards against steps that are trained again though they lay on the worker's disk: the last checkpoint of a
    paused attempt used to be tried once, and given up."""
    storage = Once(settings.data_dir / "storage")
    job = submit(database, does={"steps": 10_000, "seconds": 0.02})
    running = in_background(worker_on(storage, settings, database))
    until(lambda: "checkpoint.saved" in events(database, job.id))
    storage.away = 1_000_000
    with database.session() as session:
        jobs.request_pause(session, job.id)
    until(lambda: storage.away < 999_998)
    storage.away = 0
    running.join()
    with database.reading() as session:
        (attempt,) = telemetry.attempts(session, job.id)
    paused = read(database, job.id)
    assert paused.status is JobStatus.PAUSED
    assert paused.checkpoint is not None
    assert paused.checkpoint["step"] == attempt.last_step


def test_a_short_absence_while_a_job_begins_or_is_brought_in_costs_no_attempt(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    """Guards against a job that is failed for good by a bucket that was away for a minute: three attempts were over in
    that time."""
    storage = Once(settings.data_dir / "storage")
    job = submit(database, max_attempts=1, does={"steps": 100})
    held = claim_one(database)
    assert held is not None
    save(tmp_path, 1)
    courier(storage, database, held, tmp_path).finish()
    with database.session() as session:
        endings.stop(session, held.lease)
    storage.away = 2
    running = in_background(worker_on(storage, settings, database))
    until(lambda: not storage.away)
    until(lambda: read(database, job.id).progress)
    storage.away, storage.of = 2, "attempts"
    running.join()
    ended = read(database, job.id)
    assert (ended.status, storage.away) == (JobStatus.SUCCEEDED, 0), ended.error
    with database.reading() as session:
        assert telemetry.attempts(session, job.id)[-1].resumed_from_step == 1


@pytest.mark.parametrize(
    ("asked", "expected"), [(jobs.request_cancel, JobStatus.CANCELLED), (jobs.request_pause, JobStatus.PAUSED)]
)
def test_a_job_that_waits_for_the_storage_still_listens(
    settings: Settings, database: Database, asked: Callable[..., Job], expected: JobStatus
) -> None:
    """Guards against a stop that takes as long as the storage is away."""
    settings = settings.model_copy(update={"lease_seconds": 600})
    storage = Once(settings.data_dir / "storage")
    job = submit(database)
    held = claim_one(database)
    assert held is not None
    checkpoint = {"version": 1, "step": 1, "files": {"a": {"sha256": "0", "bytes": 1, "key": "jobs/a/checkpoints/1/0"}}}
    with database.session() as session:
        commit_checkpoint(session, held.lease, checkpoint)
        endings.stop(session, held.lease)
    storage.away = 1_000_000
    running = in_background(worker_on(storage, settings, database))
    until(lambda: storage.away < 1_000_000)
    with database.session() as session:
        asked(session, job.id)
    until(lambda: read(database, job.id).status is expected, 5)
    running.join(5)
    with database.reading() as session:
        assert telemetry.attempts(session, job.id)[-1].outcome == expected


class Endless(LocalStorage):
    """A storage in which files of ``checkpoints`` or of ``attempts`` never come to an end."""

    of = ""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.begun = threading.Event()

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        if key.split("/")[2] == self.of:
            self._go_on_for_ever(watch)
        return super().put_file(path, key, move=move, watch=watch)

    def get_file(self, key: str, path: Path, *, watch: Watch = unwatched) -> None:
        if key.split("/")[2] == self.of:
            self._go_on_for_ever(watch)
        super().get_file(key, path, watch=watch)

    def _go_on_for_ever(self, watch: Watch) -> None:
        self.begun.set()
        while True:
            watch()
            threading.Event().wait(0.02)


@pytest.mark.parametrize(
    ("asked", "expected"), [(jobs.request_cancel, JobStatus.CANCELLED), (jobs.request_pause, JobStatus.PAUSED)]
)
@pytest.mark.parametrize("of", ["checkpoints", "attempts"])
def test_a_large_file_on_its_way_does_not_hold_a_stop_up(
    settings: Settings, database: Database, tmp_path: Path, of: str, asked: Callable[..., Job], expected: JobStatus
) -> None:
    """Guards against a cancel that waits for gigabytes: it used to be asked for between files only, and not at all
    while a student is brought in."""
    storage = Endless(settings.data_dir / "storage")
    job = submit(database)
    held = claim_one(database)
    assert held is not None
    save(tmp_path, 1)
    courier(storage, database, held, tmp_path).finish()
    with database.session() as session:
        endings.stop(session, held.lease)
    storage.of = of
    running = in_background(worker_on(storage, settings, database))
    assert storage.begun.wait(20)
    with database.session() as session:
        asked(session, job.id)
    running.join(20)
    assert read(database, job.id).status is expected


def test_a_storage_that_stays_away_does_not_hold_a_pause_up_for_ever(settings: Settings, database: Database) -> None:
    """Guards against a slot that is never free again because the bucket does not come back."""
    settings = settings.model_copy(update={"lease_seconds": 1.5, "heartbeat_seconds": 0.3})
    storage = failing(settings, Unavailable("The bucket does not answer."), of="checkpoints", after=0)
    job = submit(database, does={"steps": 10_000, "seconds": 0.02})
    running = in_background(worker_on(storage, settings, database))
    until(lambda: storage._left < 0)
    with database.session() as session:
        jobs.request_pause(session, job.id)
    running.join()
    assert read(database, job.id).status is JobStatus.PAUSED


def test_a_storage_that_stays_away_does_not_hold_a_shutdown_up(settings: Settings, database: Database) -> None:
    """Guards a deployment: behind the trainer's grace came a lease's time of waiting for the bucket, and whoever had
    sent SIGTERM sent SIGKILL, which costs the attempt."""
    settings = settings.model_copy(update={"lease_seconds": 600, "grace_seconds": 2})
    storage = failing(settings, Unavailable("The bucket does not answer."), of="checkpoints", after=0)
    job = submit(database, does={"steps": 10_000, "seconds": 0.02})
    worker = worker_on(storage, settings, database)
    running = in_background(worker)
    until(lambda: storage._left < 0)
    worker.stop()
    running.join(20)
    assert not running.is_alive()
    back = read(database, job.id)
    assert (back.status, back.attempt) == (JobStatus.QUEUED, 0)


def test_a_step_is_said_to_be_saved_once(
    storage: LocalStorage, database: Database, held: Claim, tmp_path: Path
) -> None:
    """Guards against "Saved at step 240." five times over: evaluation changes the state at the last step, too."""
    carrier = courier(storage, database, held, tmp_path)
    for step in (1, 2):
        save(tmp_path, step)
        carrier.finish()
    known = read(database, held.job.id).checkpoint
    heir = courier(storage, database, held, tmp_path, known)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    heir.finish()
    now = read(database, held.job.id).checkpoint
    assert now is not None
    assert now["version"] == 2
    assert events(database, held.job.id).count("checkpoint.saved") == 2
