"""One attempt, with real processes: how it ends, and what is left of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from limbeck.timing import SECONDS_VARIABLE
from models.db import Database
from models.job import Job, JobStatus
from models.repository import catalogue, jobs, telemetry
from models.retention import attempt_prefix
from models.scratch import sweep
from models.settings import Settings
from models.storage import Storage
from tests.worker.conftest import BRIEF, STAND_IN, read, steal, submit, worker_on
from tests.worker.processes import in_background, trainers, until
from worker.queue import Bell
from worker.service import Worker
from worker.slots import Slots


def ledger(database: Database, job: Job) -> list[tuple[str | None, str | None]]:
    with database.reading() as session:
        return [(one.outcome, one.reason) for one in telemetry.attempts(session, job.id)]


def log(database: Database, job: Job) -> str:
    with database.reading() as session:
        return "".join(telemetry.read_log(session, job.id))


def step_reached(database: Database, job: Job, step: int) -> Callable[[], bool]:
    return lambda: (read(database, job.id).progress or {}).get("step", 0) >= step


def test_a_job_ends_with_its_student_in_the_storage_and_nothing_else_left(
    worker: Worker, database: Database, storage: Storage, settings: Settings
) -> None:
    job = submit(database, does={"steps": 30, "say": "a word\n", "at": 3})
    worker.drain()
    ended = read(database, job.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert ended.result is not None
    assert (ended.stage, ended.provenance, ended.checkpoint) == ("distilling", {"seed": 1}, None)
    assert "a word" in log(database, job)
    with database.reading() as session:
        model = catalogue.get_model(session, ended.result["model_id"])
        files = catalogue.model_files(session, model.id)
        loss = telemetry.metrics(session, job.id, 1000)["distilling/loss"]
    assert [(file.path, storage.exists(file.key)) for file in files] == [
        ("config.json", True),
        ("limbeck.json", True),
        ("model.safetensors", True),
        ("onnx/model.onnx", True),
    ]
    assert (model.layers, model.labels, model.task, model.parameters) == (2, ["a", "b"], "sequence_classification", 1)
    assert [point["step"] for point in loss] == list(range(1, 31))
    assert {entry.key for entry in storage.list()} == {file.key for file in files}
    assert all(file.key.startswith(attempt_prefix(job.id, 1)) for file in files), (
        "a sweep would not know whose they are"
    )
    assert list(settings.scratch_dir.iterdir()) == []  # type: ignore[union-attr]
    assert trainers() == []


@pytest.mark.parametrize(
    ("happens", "code"),
    [
        ({"signal": int(signal.SIGKILL)}, "killed"),
        ({"signal": int(signal.SIGSEGV)}, "crashed"),
        ({"exit": 7}, "crashed"),
        ({"error": {"code": "out_of_memory", "message": "Memory ran out.", "retryable": True}}, "out_of_memory"),
    ],
)
def test_a_fault_that_may_pass_is_tried_again_and_then_fails_with_its_code(
    worker: Worker, database: Database, happens: dict[str, Any], code: str
) -> None:
    """Guards against an endless loop, and against a job that runs for ever in the row of a dead process."""
    job = submit(database, does={"steps": 5, "at": 2, **happens})
    worker.drain()
    ended = read(database, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert (ended.error["code"], ended.error["retryable"]) == (code, True)
    assert ledger(database, job) == [("failed", code)] * 3


def test_a_fault_that_will_not_pass_fails_at_once_with_its_message(worker: Worker, database: Database) -> None:
    error = {"code": "diverged", "message": "The loss became NaN at step 2.", "retryable": False}
    job = submit(database, does={"at": 2, "error": error})
    worker.drain()
    assert read(database, job.id).error == error
    assert ledger(database, job) == [("failed", "diverged")]


def test_a_killed_trainer_goes_on_from_its_last_checkpoint(worker: Worker, database: Database, tmp_path: Path) -> None:
    """Guards against steps that are done again although a checkpoint has them, and against a lost one."""
    trace = tmp_path / "trace"
    job = submit(database, does={"steps": 60, "seconds": 0.03, "trace": str(trace)})
    running = in_background(worker)
    until(step_reached(database, job, 30))
    trainers()[0].kill()
    running.join()
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert ledger(database, job) == [("failed", "killed"), ("succeeded", None)]
    done = Counter(int(line.split()[1]) for line in trace.read_text().splitlines())
    assert set(done) == set(range(1, 61))
    repeated = [step for step, times in done.items() if times > 1]
    assert len(repeated) <= 0.2 / 0.03 + 2, "more than one checkpoint interval was done twice"
    with database.reading() as session:
        _, second = telemetry.attempts(session, job.id)
    assert second.resumed_from_step > 20


@pytest.mark.parametrize(
    ("asked", "expected"), [(jobs.request_cancel, JobStatus.CANCELLED), (jobs.request_pause, JobStatus.PAUSED)]
)
def test_cancel_and_pause_take_effect_within_5_seconds(
    worker: Worker, database: Database, storage: Storage, asked: Callable[..., Job], expected: JobStatus
) -> None:
    job = submit(database, does={"steps": 10_000})
    running = in_background(worker)
    until(step_reached(database, job, 5))
    began = time.monotonic()
    with database.session() as session:
        asked(session, job.id)
    until(lambda: read(database, job.id).status is expected, 5)
    running.join(5)
    assert time.monotonic() - began < 5
    assert trainers() == []
    paused = expected is JobStatus.PAUSED
    assert (read(database, job.id).checkpoint is not None) == paused
    assert bool(list(storage.list("jobs"))) == paused


def test_no_thread_of_an_attempt_outlives_it(worker: Worker, database: Database) -> None:
    """Guards a worker that lives for months: the courier of each cancelled job waited on."""
    job = submit(database, does={"steps": 10_000})
    running = in_background(worker)
    until(step_reached(database, job, 5))
    with database.session() as session:
        jobs.request_cancel(session, job.id)
    running.join(10)
    assert read(database, job.id).status is JobStatus.CANCELLED
    until(lambda: not [one.name for one in threading.enumerate() if job.id in one.name], 5)


def test_a_trainer_that_does_not_listen_is_killed_when_cancelled(worker: Worker, database: Database) -> None:
    """Guards against the stop button that does nothing."""
    job = submit(database, does={"steps": 100, "deaf": True, "at": 5, "hang": 600})
    running = in_background(worker)
    until(step_reached(database, job, 5))
    with database.session() as session:
        jobs.request_cancel(session, job.id)
    until(lambda: read(database, job.id).status is JobStatus.CANCELLED, 6)
    running.join(5)
    assert trainers() == []


@pytest.mark.parametrize("happens", [{"hang": 600}, {"signal": int(signal.SIGSTOP)}], ids=["hangs", "stopped"])
def test_a_trainer_that_lives_but_does_not_get_on_is_ended(
    settings: Settings, database: Database, storage: Storage, happens: dict[str, Any]
) -> None:
    """Guards against a job that stands at "running" for ever, because its worker says for it that it is alive."""
    impatient = settings.model_copy(update={"stall_seconds": 3, "lease_seconds": 30})  # it is the stall that counts
    job = submit(database, max_attempts=1, does={"steps": 100, "at": 5, **happens})
    Worker(impatient, database, storage, Bell(settings), Slots(1), command=STAND_IN).drain()
    ended = read(database, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert (ended.error["code"], ended.error["retryable"]) == ("stalled", True)
    assert "LIMBECK_STALL_SECONDS" in ended.error["message"]
    assert trainers() == []


def test_a_trainer_with_nothing_to_tell_is_not_taken_for_stuck(
    settings: Settings, database: Database, storage: Storage
) -> None:
    """Guards the long stages that have no progress: they poll, and that is enough."""
    impatient = settings.model_copy(update={"stall_seconds": 3, "lease_seconds": 30})  # it is the stall that counts
    job = submit(database, max_attempts=1, does={"steps": 100, "at": 5, "polls": 4})
    Worker(impatient, database, storage, Bell(settings), Slots(1), command=STAND_IN).drain()
    assert read(database, job.id).status is JobStatus.SUCCEEDED


def test_a_paused_job_goes_on_where_it_was(worker: Worker, database: Database, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    job = submit(database, max_attempts=1, does={"steps": 100, "trace": str(trace)})
    running = in_background(worker)
    until(step_reached(database, job, 10))
    with database.session() as session:
        jobs.request_pause(session, job.id)
    running.join()
    with database.session() as session:
        jobs.resume(session, job.id)
    worker.drain()
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert ledger(database, job) == [("paused", None), ("succeeded", None)]
    assert [int(line.split()[1]) for line in trace.read_text().splitlines()] == list(range(1, 101))


def test_a_worker_that_shuts_down_hands_its_job_back_at_its_last_step(
    worker: Worker, database: Database, tmp_path: Path
) -> None:
    """Guards against a deployment that loses a step, or an attempt."""
    trace = tmp_path / "trace"
    job = submit(database, does={"steps": 10_000, "trace": str(trace)})
    running = in_background(worker)
    until(step_reached(database, job, 10))
    worker.stop()
    running.join(5)
    assert not running.is_alive()
    back = read(database, job.id)
    assert (back.status, back.attempt, back.worker) == (JobStatus.QUEUED, 0, None)
    assert ledger(database, job) == [("handed_back", None)]
    assert back.checkpoint is not None
    assert back.checkpoint["step"] == int(trace.read_text().split()[-1])


def test_a_second_signal_leaves_no_time_for_a_checkpoint(worker: Worker, database: Database) -> None:
    job = submit(database, does={"steps": 100, "deaf": True, "at": 5, "hang": 600})
    running = in_background(worker)
    until(step_reached(database, job, 5))
    worker.stop()
    worker.stop()
    running.join(3)
    assert not running.is_alive()
    assert ledger(database, job) == [("handed_back", None)]


def test_a_job_whose_lease_was_taken_stops_and_writes_nothing_more(worker: Worker, database: Database) -> None:
    job = submit(database, does={"steps": 10_000})
    running = in_background(worker)
    until(step_reached(database, job, 5))
    stolen = steal(database, job.id)
    until(lambda: not trainers(), 5)
    running.join(5)
    after = read(database, job.id)
    assert (after.status, after.fence, after.worker) == (JobStatus.RUNNING, stolen.lease.fence, "test:1")
    assert ledger(database, job) == [("lost", "worker_lost"), (None, None)]


def test_a_job_survives_a_database_that_is_away_for_less_than_the_lease(
    settings: Settings, worker: Worker, database: Database
) -> None:
    """Guards against lost telemetry, and against a job that dies with a restart of the database."""
    job = submit(database, does={"steps": 120, "seconds": 0.03})
    running = in_background(worker)
    until(step_reached(database, job, 10))
    lock = sqlite3.connect(settings.data_dir / "limbeck.db", isolation_level=None, timeout=30)
    lock.execute("BEGIN IMMEDIATE")
    time.sleep(0.8)
    lock.execute("ROLLBACK")
    lock.close()
    running.join(20)
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert ledger(database, job) == [("succeeded", None)]
    with database.reading() as session:
        loss = telemetry.metrics(session, job.id, 1000)["distilling/loss"]
    assert [point["step"] for point in loss] == list(range(1, 121))


def test_a_database_that_stays_away_stops_the_trainer_before_the_lease_ends(
    settings: Settings, storage: Storage, database: Database
) -> None:
    """Guards against two trainers of one job, when the network between a worker and the database is cut."""
    brief = settings.model_copy(update=BRIEF)
    job = submit(database, does={"steps": 10_000})
    running = in_background(worker := worker_on(storage, brief, database))
    until(step_reached(database, job, 5))
    lock = sqlite3.connect(settings.data_dir / "limbeck.db", isolation_level=None, timeout=30)
    lock.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    until(lambda: not trainers())
    assert time.monotonic() - began < brief.lease_seconds + 0.3
    worker.stop()
    lock.execute("ROLLBACK")
    lock.close()
    running.join(30)
    assert read(database, job.id).status is JobStatus.RUNNING, "its lease runs out, then it is due again"


def test_an_end_that_the_database_refuses_becomes_a_fault(worker: Worker, database: Database) -> None:
    """Guards against a row that no worker ends: its lease ran out three times, and it was the workers' fault."""
    job = submit(database, max_attempts=1)
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON models BEGIN SELECT RAISE(ABORT, 'too long for its column'); END"
    with database.session() as session:
        session.execute(text(refuse))
    worker.drain()
    ended = read(database, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert ended.error["code"] == "internal_error"
    assert "too long for its column" in ended.error["message"]
    assert "INSERT" not in ended.error["message"]
    assert ledger(database, job) == [("failed", "internal_error")]


def test_the_checkpoints_of_a_job_that_is_deleted_as_it_ends_go_too(
    worker: Worker, database: Database, storage: Storage
) -> None:
    """Guards the storage: the row that was to say whether they are needed is no more."""
    job = submit(database, does={"steps": 30})
    with database.session() as session:
        delete = "DELETE FROM jobs WHERE id = NEW.job_id"
        at = f"AFTER INSERT ON events WHEN NEW.kind = 'job.succeeded' BEGIN {delete}; END"
        session.execute(text(f"CREATE TRIGGER at_once {at}"))
    worker.drain()
    with database.reading() as session:
        assert session.get(Job, job.id) is None
    assert [entry.key for entry in storage.list() if "/checkpoints/" in entry.key] == []


def test_a_log_is_cut_at_its_limit_and_says_so(settings: Settings, worker: Worker, database: Database) -> None:
    job = submit(database, does={"steps": 3, "at": 1, "say": "x" * 1024, "times": 6 * 1024})
    worker.drain()
    found = log(database, job)
    assert len(found) < settings.max_log_bytes + 1000
    assert "[The log is full" in found


def test_temporary_files_go_with_the_attempt(worker: Worker, database: Database, tmp_path: Path) -> None:
    """Guards /tmp, which a process that ends by a kill or by `os._exit` would fill, job by job."""
    job = submit(database, does={"at": 1, "temporary": str(tmp_path / "where")})
    worker.drain()
    assert read(database, job.id).status is JobStatus.SUCCEEDED
    assert not Path((tmp_path / "where").read_text()).exists()


def test_folders_of_lost_attempts_are_swept(settings: Settings) -> None:
    """Guards the disk: a folder that an errand made again when its attempt was over has no lock."""
    assert settings.scratch_dir is not None
    made = {name: settings.scratch_dir / name for name in ("job_a-1", "job_b-1", "job_c-1", "job_d-1", "upload-e")}
    for name, folder in made.items():
        folder.mkdir(parents=True)
        if name in ("job_a-1", "job_b-1"):
            (folder / "lock").touch()
    for old in (made["job_a-1"] / "lock", made["job_c-1"], made["upload-e"]):
        os.utime(old, (1, 1))
    sweep(settings.scratch_dir)
    assert [name for name, folder in made.items() if folder.exists()] == ["job_b-1", "job_d-1"]


def test_the_trainer_sees_none_of_the_servers_settings(
    worker: Worker, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Guards against a password in the environment of a process that runs a stranger's model."""
    monkeypatch.setenv("LIMBECK_S3_SECRET_ACCESS_KEY", "very secret")
    job = submit(database, does={"steps": 1000, "at": 5, "hang": 600})
    running = in_background(worker)
    until(step_reached(database, job, 5))
    environment = trainers()[0].environ()
    worker.stop()
    worker.stop()
    running.join(5)
    assert [name for name in environment if name.startswith("LIMBECK_")] == [SECONDS_VARIABLE]
    assert environment["OMP_NUM_THREADS"]
    assert os.environ["LIMBECK_S3_SECRET_ACCESS_KEY"] == "very secret"
