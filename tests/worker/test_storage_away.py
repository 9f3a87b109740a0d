"""Jobs whose storage is full, away, slow or stuck: they wait as long as that is worth it, and listen meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.errors import StorageFull, Unavailable
from models.db import Database
from models.job import Job, JobStatus
from models.repository import jobs, telemetry
from models.settings import Settings
from models.storage import Storage
from tests.worker.conftest import BRIEF, claim_one, events, read, submit, worker_on
from tests.worker.processes import in_background, until
from tests.worker.stand_in_trainer import save
from tests.worker.storages import Endless, Once, Stuck, failing
from worker import endings
from worker.checkpoints import Courier
from worker.lease import commit_checkpoint


def hand_back_at_step_1(database: Database, storage: Storage, state: Path) -> None:
    """Leave the one job that waits with a checkpoint."""
    held = claim_one(database)
    assert held is not None
    save(state, 1)
    Courier(storage, database, held.lease, state, None).finish()
    with database.session() as session:
        endings.stop(session, held.lease)


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
    """An attempt waits for the storage as long as a lease is."""
    storage = failing(settings, Unavailable("The bucket does not answer."), of="attempts", after=1)
    job = submit(database, does={"steps": 3})
    running = in_background(worker_on(storage, settings.model_copy(update=BRIEF), database))
    until(lambda: "job.retrying" in events(database, job.id), 60)
    storage._left = 100
    running.join()
    assert read(database, job.id).status is JobStatus.SUCCEEDED


def test_a_storage_that_is_away_does_not_stop_the_training(settings: Settings, database: Database) -> None:
    storage = failing(settings, Unavailable("The bucket does not answer."), of="checkpoints", after=0)
    job = submit(database, does={"steps": 40})
    worker_on(storage, settings, database).drain()
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert "checkpoint.saved" not in events(database, job.id)


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
    hand_back_at_step_1(database, storage, tmp_path)
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
    hand_back_at_step_1(database, storage, tmp_path)
    storage.of = of
    running = in_background(worker_on(storage, settings, database))
    assert storage.begun.wait(20)
    with database.session() as session:
        asked(session, job.id)
    running.join(20)
    assert read(database, job.id).status is expected


def test_a_storage_that_stays_away_does_not_hold_a_pause_up_for_ever(settings: Settings, database: Database) -> None:
    """Guards against a slot that is never free again because the bucket does not come back."""
    settings = settings.model_copy(update={"lease_seconds": 4})
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


def test_an_upload_that_hangs_does_not_hold_a_shutdown_up(settings: Settings, database: Database) -> None:
    """Guards the same against a bucket that does not even refuse. What it then takes late changes nothing."""
    storage = Stuck(settings.data_dir / "storage")
    job = submit(database, does={"steps": 10_000, "seconds": 0.02})
    worker = worker_on(storage, settings.model_copy(update={"grace_seconds": 2, "lease_seconds": 600}), database)
    running = in_background(worker)
    assert storage.begun.wait(20)
    worker.stop()
    running.join(20)
    assert not running.is_alive()
    handed_back = read(database, job.id)
    storage.released.set()
    until(lambda: not [one for one in threading.enumerate() if job.id in one.name])
    assert (handed_back.status, handed_back.checkpoint) == (JobStatus.QUEUED, None)
    assert read(database, job.id).version == handed_back.version
