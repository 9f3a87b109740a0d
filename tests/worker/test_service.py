"""Whole workers, killed, stopped and told to end; the broker lost, doubled and away. Each job still runs once."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import StorageFull
from models.db import Database
from models.job import Job, JobStatus
from models.repository import telemetry
from models.settings import Settings
from tests.services import Postgres, Redis
from tests.worker.conftest import BRIEF, open_database, read, submit
from tests.worker.processes import alive, trainers, until, worker_process
from worker.queue import Bell
from worker.service import Worker


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def with_redis_alone(settings: Settings, server: Redis) -> Settings:
    """Bells come through Redis, or not at all: the reconciler looks only once."""
    rare = {"reconcile_min_seconds": 300, "reconcile_max_seconds": 300}
    return settings.model_copy(update={"broker_url": server.url, **rare})


def has_step(database: Database, job: Job, step: int) -> bool:
    return bool((read(database, job.id).progress or {}).get("step", 0) >= step)


def is_done(database: Database, job: Job) -> bool:
    return read(database, job.id).status.terminal


def steps(trace: Path) -> dict[str, list[int]]:
    """The steps that each attempt did."""
    done: dict[str, list[int]] = {}
    for line in trace.read_text().splitlines():
        attempt, step = line.split()
        done.setdefault(attempt, []).append(int(step))
    return done


def outcomes(database: Database, job: Job) -> list[str | None]:
    with database.reading() as session:
        return [one.outcome for one in telemetry.attempts(session, job.id)]


def test_a_claim_that_finds_the_databases_disk_full_is_tried_again(
    worker: Worker, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a traceback at every bell, in which nobody sees that the disk is full."""
    job = submit(database, does={"steps": 1})
    with monkeypatch.context() as full:
        full.setattr(database, "session", _full)
        worker.drain()
    assert "no job could be claimed: The database's disk is full." in caplog.text
    worker.drain()
    assert read(database, job.id).status is JobStatus.SUCCEEDED


def _full() -> Any:
    raise StorageFull("The database's disk is full.")


def test_a_killed_worker_takes_its_trainer_with_it_and_its_job_moves(
    either: Database, on_both: Settings, trace: Path
) -> None:
    """Guards against a job that runs "for ever", and against an orphan that trains on beside its successor."""
    job = submit(either, does={"steps": 80, "seconds": 0.03, "trace": str(trace)})
    with worker_process(on_both.model_copy(update=BRIEF)) as first:
        until(lambda: has_step(either, job, 30))
        family = trainers(first.pid)
        first.kill()
        until(lambda: not alive(family), 5)
    with worker_process(on_both):
        until(lambda: is_done(either, job), 60)
    assert read(either, job.id).status is JobStatus.SUCCEEDED
    assert outcomes(either, job) == ["lost", "succeeded"]
    before, after = steps(trace).values()
    assert before + after[after.index(before[-1]) + 1 :] == list(range(1, 81)) if before[-1] in after else True
    assert after[-1] == 80
    assert 0 <= before[-1] - after[0] + 1 <= 12, (
        "more than one checkpoint interval was done twice, or a step was left out"
    )


def test_a_worker_that_was_stopped_past_its_lease_finds_its_job_gone(
    database: Database, settings: Settings, trace: Path
) -> None:
    """Guards against a late worker that finishes, or fails, what another one runs by now."""
    job = submit(database, does={"steps": 100, "seconds": 0.03, "trace": str(trace)})
    brief = settings.model_copy(update=BRIEF)
    with worker_process(brief) as first:
        until(lambda: has_step(database, job, 20))
        trainer = trainers(first.pid)
        first.suspend()
        until(lambda: not alive(trainer), brief.lease_seconds + 5)
        with worker_process(settings) as second:
            until(lambda: read(database, job.id).fence == 2)
            first.resume()
            until(lambda: is_done(database, job), 60)
            assert read(database, job.id).status is JobStatus.SUCCEEDED
            for one in (first, second):
                one.send_signal(signal.SIGTERM)
            assert [first.wait(15), second.wait(15)] == [0, 0]
    assert outcomes(database, job) == ["lost", "succeeded"]
    assert sorted({step for done in steps(trace).values() for step in done}) == list(range(1, 101))
    with database.reading() as session:
        succeeded = [one for one in telemetry.events_after(session, job.id, 0, 1000) if one.kind == "job.succeeded"]
    assert len(succeeded) == 1


def test_sigterm_hands_the_job_back_and_ends_with_exit_code_0(
    database: Database, settings: Settings, trace: Path
) -> None:
    job = submit(database, does={"steps": 10_000, "trace": str(trace)})
    with worker_process(settings) as worker:
        until(lambda: has_step(database, job, 10))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(settings.grace_seconds + 5) == 0
    back = read(database, job.id)
    assert (back.status, back.attempt) == (JobStatus.QUEUED, 0)
    assert back.checkpoint is not None
    assert back.checkpoint["step"] == next(iter(steps(trace).values()))[-1]


def test_bells_that_are_doubled_or_lost_change_nothing(database: Database, settings: Settings, trace: Path) -> None:
    """Twenty bells for the first jobs, none for the others."""
    loud = [submit(database, does={"trace": str(trace)}) for _ in range(3)]
    with worker_process(settings):
        bell = Bell(settings)
        for _ in range(20):
            bell.ring()
            time.sleep(0.01)
        bell.close()
        silent = [submit(database, does={"trace": str(trace)}) for _ in range(3)]
        for job in [*loud, *silent]:
            until(partial(is_done, database, job), 30)
            assert outcomes(database, job) == ["succeeded"]
    assert [len(done) for done in steps(trace).values()] == [3] * 6


def test_a_ring_returns_at_once_while_redis_is_down_and_is_heard_when_it_is_back(
    settings: Settings, own_redis: Redis
) -> None:
    """Guards against a submit that waits 6 s for the broker, and against a job that then never starts."""
    settings = settings.model_copy(
        update={"broker_url": own_redis.url, "reconcile_min_seconds": 300, "reconcile_max_seconds": 300}
    )
    database = open_database(settings)
    own_redis.kill()
    bell = Bell(settings)
    try:
        with worker_process(settings) as worker:
            time.sleep(3)  # the worker has made its first look at the rows, and has no broker
            job = submit(database)
            began = time.monotonic()
            bell.ring()
            assert time.monotonic() - began < 1
            time.sleep(1)
            assert read(database, job.id).status is JobStatus.QUEUED
            own_redis.start()
            until(lambda: is_done(database, job), 30)
            own_redis.kill()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0, "a worker without a broker did not end"
    finally:
        bell.close()
        database.dispose()


def test_a_retry_does_not_wait_for_the_next_look_at_the_rows(settings: Settings, database: Database) -> None:
    """Guards against a job whose second attempt came 10 minutes after the first, where 10 seconds are promised."""
    rarely = {"reconcile_min_seconds": 120, "reconcile_max_seconds": 120, "retry_seconds": 0.5}
    settings = settings.model_copy(update=rarely)
    bell = Bell(settings)
    with worker_process(settings):
        first = submit(database)
        bell.ring()
        until(lambda: is_done(database, first), 30)
        time.sleep(0.5)  # whatever the end of that job set off
        job = submit(database, does={"at": 1, "signal": signal.SIGKILL})
        bell.ring()
        until(lambda: is_done(database, job), 30)
    bell.close()
    assert outcomes(database, job) == ["failed", "failed", "failed"]


def test_a_job_runs_on_while_redis_is_killed_and_the_next_one_is_heard(settings: Settings, own_redis: Redis) -> None:
    settings = settings.model_copy(
        update={"broker_url": own_redis.url, "reconcile_min_seconds": 300, "reconcile_max_seconds": 300}
    )
    database = open_database(settings)
    bell = Bell(settings)
    try:
        first = submit(database, does={"steps": 60, "seconds": 0.03})
        with worker_process(settings) as worker:
            until(lambda: has_step(database, first, 10))
            own_redis.kill()
            until(lambda: is_done(database, first))
            own_redis.start()
            second = submit(database)
            bell.ring()
            until(lambda: is_done(database, second), 30)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(15) == 0
        assert outcomes(database, first) == outcomes(database, second) == ["succeeded"]
    finally:
        bell.close()
        database.dispose()


def test_a_job_survives_a_crash_of_postgres(settings: Settings, own_postgres: Postgres) -> None:
    """Guards against a job that dies, or is done twice, because its database was restarted."""
    patient = {"lease_seconds": 10, "heartbeat_seconds": 1, "database_url": own_postgres.url}
    settings = settings.model_copy(update=patient)
    database = open_database(settings)
    try:
        job = submit(database, does={"steps": 120, "seconds": 0.03})
        with worker_process(settings):
            until(lambda: has_step(database, job, 20))
            own_postgres.kill()
            time.sleep(1)
            own_postgres.start()
            until(lambda: is_done(database, job), 30)
        assert outcomes(database, job) == ["succeeded"]
        with database.reading() as session:
            loss = telemetry.metrics(session, job.id, 1000)["distilling/loss"]
        assert [point["step"] for point in loss] == list(range(1, 121))
    finally:
        database.dispose()
