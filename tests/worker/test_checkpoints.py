"""What a job goes on from: stored before the row names it, kept while the row names it, checked when it is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import Unavailable
from models.db import Database
from models.job import JobStatus
from models.repository import jobs
from models.settings import Settings
from models.storage.local import LocalStorage
from tests.worker.conftest import claim_one, events, read, steal, submit, worker_on
from tests.worker.processes import in_background, until
from tests.worker.stand_in_trainer import save
from tests.worker.storages import Stuck, failing
from worker.checkpoints import Courier
from worker.lease import Claim
from worker.service import Worker


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
    # A lease that a busy machine does not let run out: the next attempt would wait for longer than this test does.
    once = settings.model_copy(update={"checkpoint_seconds": 600, "lease_seconds": 20})
    job = submit(database, does={"steps": 100, "saves": 5, "at": 5, "hang": 600})

    def run_to_step_5(but_not: dict[str, Any] | None) -> dict[str, Any]:
        worker = worker_on(storage, once, database)
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


def test_an_error_that_nobody_thought_of_costs_one_checkpoint(
    settings: Settings, database: Database, held: Claim, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a thread that dies of it in silence: no later checkpoint would be stored until the job's end."""
    storage = failing(settings, RuntimeError("never seen"), of="checkpoints", after=0)
    carrier = courier(storage, database, held, tmp_path)
    save(tmp_path, 1)
    carrier.start()
    carrier.notice()
    until(lambda: "never seen" in caplog.text)
    storage._left = 100
    save(tmp_path, 2)
    carrier.notice()
    until(lambda: read(database, held.job.id).checkpoint)
    carrier.finish()


def test_an_upload_that_hangs_is_left_to_itself_when_the_time_is_over(
    settings: Settings, database: Database, held: Claim, tmp_path: Path
) -> None:
    """Guards a shutdown that waits for a bucket which takes the last checkpoint's bytes and does not answer."""
    storage = Stuck(settings.data_dir / "storage")
    carrier = courier(storage, database, held, tmp_path)
    save(tmp_path, 1)
    carrier.finish(overdue=storage.begun.is_set)
    assert read(database, held.job.id).checkpoint is None
    storage.released.set()
    until(lambda: read(database, held.job.id).checkpoint)


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
