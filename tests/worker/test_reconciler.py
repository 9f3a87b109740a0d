"""What is found when no bell is heard and workers are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.db import Database
from models.job import Job, JobStatus
from models.repository import jobs
from models.settings import Settings
from models.storage import Storage
from tests.worker.conftest import STAND_IN, claim_one, expire, offered, read, submit
from tests.worker.processes import until
from worker import lease
from worker.queue import Bell
from worker.reconciler import Reconciler
from worker.service import Worker
from worker.slots import Slots


@pytest.fixture
def deaf(settings: Settings, database: Database, storage: Storage) -> Iterator[Reconciler]:
    """A reconciler whose bells nobody hears: nothing listens on the broker's port."""
    away = settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    bell = Bell(away)
    worker = Worker(away, database, storage, bell, Slots(1), command=STAND_IN)
    reconciler = Reconciler(away, database, storage, bell, worker)
    yield reconciler
    worker.stop()
    reconciler.stop()
    worker.join()
    bell.close(0)


def test_a_job_runs_although_its_bell_is_never_heard(deaf: Reconciler, database: Database) -> None:
    """Guards against a job that waits for ever in a queue whose broker lost it."""
    job = submit(database)
    deaf.start()
    until(lambda: read(database, job.id).status is JobStatus.SUCCEEDED)


def test_a_look_counts_what_is_due_and_when_to_look_again(deaf: Reconciler, database: Database) -> None:
    assert deaf.look().soonest is None
    submit(database)
    submit(database)
    held = claim_one(database, lease_seconds=30)
    assert held is not None
    found = deaf.look()
    assert (found.due, found.settled) == (1, 0)
    assert found.soonest is not None
    assert 20 < found.soonest <= 30
    expire(database, held.job.id)
    assert deaf.look().due == 2


def test_parts_that_nobody_is_at_are_found(deaf: Reconciler, database: Database) -> None:
    """Guards against help that depends on a bell."""
    running = offered(database)
    assert (deaf.look().due, deaf.look().offered) == (0, 4)
    with database.session() as session:
        jobs.request_pause(session, running.job.id)
    assert deaf.look().offered == 0


def test_checkpoints_go_when_a_job_ends_without_a_worker(
    deaf: Reconciler, database: Database, storage: Storage, tmp_path: Path
) -> None:
    """Guards against the files of jobs that were cancelled while they were paused, or whose worker had died."""
    (tmp_path / "a").write_bytes(b"a")
    for _ in range(2):
        submit(database)
        held = claim_one(database)
        assert held is not None
        stored = storage.put_file(tmp_path / "a", f"jobs/{held.job.id}/checkpoints/1/a")
        file = {"sha256": stored.sha256, "bytes": 1, "key": stored.key}
        with database.session() as session:
            lease.commit_checkpoint(session, held.lease, {"version": 1, "step": 1, "files": {"a": file}})
    by_worker, by_user = [job.id for job in _all(database)]
    with database.session() as session:
        jobs.request_pause(session, by_user)
        jobs.request_cancel(session, by_worker)
    expire(database, by_worker)
    expire(database, by_user)
    assert deaf.look().settled == 2
    assert [entry.key for entry in storage.list("jobs")] == [f"jobs/{by_user}/checkpoints/1/a"]
    with database.session() as session:
        jobs.request_cancel(session, by_user)
    deaf.start()
    until(lambda: list(storage.list("jobs")) == [])


def _all(database: Database) -> list[Job]:
    with database.reading() as session:
        return list(jobs.list_page(session, limit=10, cursor=None).items)
