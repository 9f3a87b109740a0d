"""Workers that help with another one's job: real processes around stand-ins for what computes."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from sqlalchemy import func, select

from models.db import Database
from models.job import Job, JobStatus
from models.part import TeacherPart
from models.repository import jobs
from models.settings import Settings
from models.storage import Storage, open_storage
from tests.worker.conftest import BRIEF, STAND_IN, STAND_IN_ANSWERER, read, submit
from tests.worker.processes import alive, answerers, in_background, trainers, until, worker_process
from worker.queue import Bell
from worker.service import Worker
from worker.slots import Slots

KEY = "c" * 64


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def bucket() -> Iterator[dict[str, Any]]:
    """The settings of a storage that is no folder."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
    keys = {name: SecretStr(name) for name in ("s3_access_key_id", "s3_secret_access_key")}
    yield {"storage_url": "s3://bucket/limbeck", "s3_endpoint": endpoint, **keys}
    server.stop()


@pytest.fixture
def offer(tmp_path: Path) -> dict[str, Any]:
    """What a job offers; it ends once all parts have been handed in by others."""
    return {"key": KEY, "parts": 5, "trace": str(tmp_path / "trace")}


@pytest.fixture
def workers(settings: Settings, database: Database, storage: Storage) -> Iterator[list[Worker]]:
    """Two workers in this process; the caller has them run what is due."""
    made = [
        Worker(settings, database, storage, Bell(settings), Slots(1), command=STAND_IN, answerer=STAND_IN_ANSWERER)
        for _ in range(2)
    ]
    yield made
    for worker in made:
        worker.stop()


def begun(offer: dict[str, Any]) -> list[tuple[str, int]]:
    """Which worker began which part, in order."""
    trace = Path(offer["trace"])
    lines = [line.split() for line in trace.read_text().splitlines()] if trace.exists() else []
    return [(worker, int(part)) for worker, part in lines]


def offered(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(TeacherPart)) or 0


def held(database: Database) -> int:
    with database.reading() as session:
        query = select(func.count()).select_from(TeacherPart).where(TeacherPart.worker.is_not(None))
        return session.scalar(query) or 0


def has_ended(database: Database, job: Job) -> bool:
    return read(database, job.id).status.terminal


def test_an_idle_worker_hears_of_a_pass_and_computes_its_parts(
    on_both: Settings, either: Database, offer: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Guards the whole way by the bell alone, once with files and SQLite, once with Redis, PostgreSQL and a bucket: two
    workers that share nothing else, and nothing is left of the parts."""
    settings = on_both.model_copy(update={"reconcile_min_seconds": 300, "reconcile_max_seconds": 300})
    if either.engine.dialect.name == "postgresql":
        shared = {"broker_url": request.getfixturevalue("redis_url"), **request.getfixturevalue("bucket")}
        settings = settings.model_copy(update=shared)
    storage = open_storage(settings)
    with ExitStack() as stack:
        for number in range(2):
            own = settings.model_copy(update={"scratch_dir": settings.data_dir / f"machine-{number}"})
            stack.enter_context(worker_process(own))
        until(lambda: (settings.data_dir / "worker.log").read_text().count("slot(s)") == 2)
        bell = Bell(settings)
        job = submit(either, does={"offer": offer, "steps": 100})
        bell.ring()
        until(lambda: has_ended(either, job))
        until(lambda: not list(storage.list("cache/teacher-parts")))
        bell.close()
    assert read(either, job.id).status is JobStatus.SUCCEEDED, read(either, job.id).error
    assert [part for _, part in begun(offer)] == [4, 3, 2, 1, 0]
    assert len({worker for worker, _ in begun(offer)}) == 1
    assert offered(either) == 0


def test_parts_of_a_killed_helper_are_computed_by_the_next(
    database: Database, settings: Settings, workers: list[Worker], offer: dict[str, Any], tmp_path: Path
) -> None:
    """Guards against a job that waits for the dead: the worker is killed in the middle of a part."""
    job = submit(database, does={"offer": {**offer, "hang": str(tmp_path / "hang")}})
    running = in_background(workers[0])
    until(lambda: offered(database) == 5)
    with worker_process(settings.model_copy(update=BRIEF)) as doomed:
        until(lambda: begun(offer))
        (process,) = answerers(doomed.pid)
        doomed.kill()
        until(lambda: not alive([process]))
    # The last part once the lease of the dead is over.
    until(lambda: workers[1].drain() or has_ended(database, job), 60)
    running.join(20)
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    (dead, part), *rest = begun(offer)
    assert {worker for worker, _ in rest} == {workers[1].holder.worker}
    assert dead != workers[1].holder.worker
    assert sorted(number for _, number in rest) == [0, 1, 2, 3, 4]
    assert rest[-1][1] == part


def test_a_helper_process_that_dies_is_not_started_again_and_again(
    database: Database, workers: list[Worker], offer: dict[str, Any], tmp_path: Path
) -> None:
    """Guards against a teacher that is too large for a machine, and kills its helper each time; others may try."""
    job = submit(database, does={"offer": {**offer, "hang": str(tmp_path / "hang")}})
    running = in_background(workers[0])
    until(lambda: offered(database) == 5)
    helping = in_background(workers[1])
    until(lambda: begun(offer))
    answerers()[0].kill()
    helping.join(20)
    assert not helping.is_alive()
    assert (len(begun(offer)), offered(database), held(database)) == (1, 5, 0)
    workers[1].drain()
    assert len(begun(offer)) == 1
    with database.session() as session:
        jobs.request_cancel(session, job.id)
    running.join(20)
    assert read(database, job.id).status is JobStatus.CANCELLED
    assert offered(database) == 0


def test_help_makes_room_for_a_job_and_comes_back(
    database: Database, workers: list[Worker], offer: dict[str, Any], tmp_path: Path
) -> None:
    """Guards a job that waits against help that goes on."""
    first = submit(database, does={"offer": {**offer, "hang": str(tmp_path / "hang")}})
    running = in_background(workers[0])
    until(lambda: offered(database) == 5)
    helping = in_background(workers[1])
    until(lambda: begun(offer))
    second = submit(database)
    until(lambda: has_ended(database, second))
    assert not has_ended(database, first)
    until(lambda: has_ended(database, first))
    helping.join(20)
    running.join(20)
    assert [part for _, part in begun(offer)] == [4, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("ends", ["cancel", "pause", "shutdown"])
def test_help_ends_when_the_job_or_its_own_worker_does(
    database: Database, workers: list[Worker], offer: dict[str, Any], tmp_path: Path, ends: str
) -> None:
    """Guards against a process that computes for nobody, and a part that stays with a worker that has gone."""
    job = submit(database, does={"offer": {**offer, "hang": str(tmp_path / "hang")}})
    running = in_background(workers[0])
    until(lambda: offered(database) == 5)
    helping = in_background(workers[1])
    until(lambda: begun(offer))
    if ends == "shutdown":
        workers[1].stop()
    else:
        with database.session() as session:
            (jobs.request_cancel if ends == "cancel" else jobs.request_pause)(session, job.id)
    helping.join(20)
    assert not helping.is_alive()
    assert answerers() == []
    if ends == "shutdown":
        assert (offered(database), held(database)) == (5, 0)
        assert len(trainers()) == 1, "the job goes on"
        workers[0].stop()
    running.join(20)
    assert offered(database) == 0
    expected = {"cancel": JobStatus.CANCELLED, "pause": JobStatus.PAUSED, "shutdown": JobStatus.QUEUED}
    assert read(database, job.id).status is expected[ends]


def test_what_was_handed_in_outlives_the_attempt_that_wanted_it(
    database: Database, workers: list[Worker], offer: dict[str, Any], tmp_path: Path
) -> None:
    """Guards the parts of a job that is paused, or whose worker dies, before it has taken them."""
    job = submit(database, does={"offer": {**offer, "seconds": 0.5}})
    running = in_background(workers[0])
    until(lambda: offered(database) == 5)
    helping = in_background(workers[1])
    until(lambda: len(begun(offer)) >= 3)
    with database.session() as session:
        jobs.request_pause(session, job.id)
    running.join(20)
    helping.join(20)
    done = len(begun(offer)) - 1
    with database.session() as session:
        jobs.resume(session, job.id)
    running = in_background(workers[0])
    until(lambda: offered(database) > 0)
    workers[1].drain()
    running.join(20)
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert done >= 2
    assert len(begun(offer)) <= 5 + 1, "only what was being computed when the job was paused is computed again"
