"""A training whose ranks are on several hosts: real workers that find each other, and hosts that go in any way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.attempt import Attempt
from models.db import Database
from models.event import Event
from models.job import Job, JobStatus
from models.model import ModelKind
from models.repository import catalogue, jobs, telemetry
from models.settings import Settings
from models.storage import Storage
from tests.worker.conftest import read, submit
from tests.worker.processes import alive, in_background, trainers, until, worker_process
from tests.worker.test_real_job import uploaded
from worker.queue import Bell
from worker.runner import TRAINER
from worker.service import Worker
from worker.slots import Slots

#: Each job starts processes that import torch: minutes on a busy machine.
pytestmark = pytest.mark.timeout(600)
WORKER = ("-m", "worker")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def shared(settings: Settings) -> Settings:
    """What the hosts have in common; patient, since two of them share this machine's cores."""
    patient = {"lease_seconds": 30, "heartbeat_seconds": 1, "hosts_wait_seconds": 12, "grace_seconds": 30}
    return settings.model_copy(update=patient)


@pytest.fixture
def config(database: Database, storage: Storage, tmp_path: Path) -> dict[str, Any]:
    """Two devices on two hosts."""
    config = uploaded(database, storage, tmp_path)
    config["training"] |= {"devices": 2, "hosts": 2, "epochs": 4}
    return config


@pytest.fixture
def start(shared: Settings, tmp_path: Path) -> Iterator[Callable[..., psutil.Popen]]:
    """Starts a worker as a host of its own: with a folder of its own, and all else shared."""
    with ExitStack() as stack:

        def one(name: str, **changes: Any) -> psutil.Popen:
            own = shared.model_copy(update={"scratch_dir": tmp_path / name, **changes})
            return stack.enter_context(worker_process(own, WORKER))

        yield one


def told(database: Database, job: Job) -> list[Event]:
    with database.reading() as session:
        return list(telemetry.events_after(session, job.id, 0, 1000))


def kinds(database: Database, job: Job) -> list[str]:
    return [event.kind for event in told(database, job)]


def lent(worker: psutil.Popen) -> list[psutil.Process]:
    """The ranks that a worker lends."""
    return [rank for process in trainers(worker.pid, "worker.lent") for rank in trainers(process.pid, "rank_process")]


def attempts(database: Database, job: Job) -> list[Attempt]:
    with database.reading() as session:
        return list(telemetry.attempts(session, job.id))


def ended(database: Database, job: Job) -> Job:
    def found() -> Job | None:
        now = read(database, job.id)
        return now if now.status.terminal else None

    job = until(found, 300)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt == 1
    return job


def student(database: Database, job: Job) -> str:
    with database.reading() as session:
        (model,) = catalogue.models_of_job(session, job.id)
        assert model.kind is ModelKind.STUDENT
        return catalogue.model_file(session, model.id, "model.safetensors").sha256


@dataclass
class Team:
    """Two workers that are at one job."""

    job: Job
    leads: psutil.Popen
    lends: psutil.Popen


@pytest.fixture
def team(
    start: Callable[..., psutil.Popen], shared: Settings, database: Database, config: dict[str, Any]
) -> Iterator[Callable[..., Team]]:
    """Has a job begin with two ranks on two hosts."""
    bell = Bell(shared)

    def begin(epochs: int, **changes: Any) -> Team:
        workers = [start(name, **changes) for name in ("one", "other")]
        until(lambda: (shared.data_dir / "worker.log").read_text().count("slot(s)") == 2, 60)
        config["training"]["epochs"] = epochs
        job = submit(database, config=config)
        bell.ring()
        until(lambda: {"host.joined", "hosts.missing"} & {*kinds(database, job)}, 90)
        (joined,) = [event for event in told(database, job) if event.kind == "host.joined"]
        (attempt,) = attempts(database, job)
        by_pid = {str(worker.pid): worker for worker in workers}
        leads, lends = (by_pid[name.split(":")[1]] for name in (attempt.worker, joined.data["worker"]))
        assert leads.pid != lends.pid
        return Team(job, leads, lends)

    yield begin
    bell.close()


def test_two_hosts_make_the_student_of_one(
    team: Callable[..., Team], database: Database, shared: Settings, storage: Storage, config: dict[str, Any]
) -> None:
    """Guards the whole way by the bell, bit for bit: another's sources, the state that is sent, draws by rank, and who
    writes the end. The host that is lent is free again afterwards."""
    config["method"] = {"type": "patient"}  # whose teacher's states come to the state when all ranks are at work
    alone = submit(database, config={**config, "training": {**config["training"], "epochs": 4, "hosts": 1}})
    Worker(shared, database, storage, Bell(shared), Slots(1), command=TRAINER).drain()
    assert read(database, alone.id).status is JobStatus.SUCCEEDED, read(database, alone.id).error

    begun = team(epochs=4)
    job = ended(database, begun.job)
    (met,) = [event for event in told(database, job) if event.kind == "ranks.met"]
    assert met.message == "2 ranks on 2 hosts share every batch."
    assert not {"rank.lost", "hosts.missing"} & {*kinds(database, job)}
    assert student(database, job) == student(database, alone)
    until(lambda: not trainers(begun.lends.pid, "worker.lent"))
    log = (shared.data_dir / "worker.log").read_text()
    assert log.count("has no host of this worker any more") == 1
    assert "Traceback" not in log


def test_a_rank_and_then_a_whole_host_are_lost(team: Callable[..., Team], database: Database) -> None:
    """Guards against a job that hangs, or counts an attempt, when what other hosts lend is killed in mid-training."""
    begun = team(epochs=40)
    job = begun.job
    until(lambda: "checkpoint.saved" in kinds(database, job), 120)
    (rank,) = lent(begun.lends)
    rank.kill()
    until(lambda: kinds(database, job).count("ranks.met") == 2, 120)
    (rank,) = lent(begun.lends)
    begun.lends.kill()
    until(lambda: not alive([rank]))
    ended(database, job)
    lost = [event.message for event in told(database, job) if event.kind == "rank.lost"]
    assert "was killed from outside (SIGKILL)" in lost[0]
    assert "lent by worker" in lost[1]
    assert "has gone with it" in lost[1]
    assert len(lost) == 2
    assert kinds(database, job).count("hosts.missing") == 1
    assert [event.data["ranks"] for event in told(database, job) if event.kind == "ranks.met"] == [2, 2, 1]


def test_a_worker_that_has_to_end_takes_its_host_back(team: Callable[..., Team], database: Database) -> None:
    """Guards a shutdown: no step is lost by it, no restart is counted, and the worker does not wait for the job."""
    begun = team(epochs=40, checkpoint_seconds=600)
    job = begun.job
    until(lambda: "epoch.finished" in kinds(database, job), 120)
    begun.lends.terminate()
    assert begun.lends.wait(60) == 0
    assert not read(database, job.id).status.terminal
    ended(database, job)
    assert kinds(database, job).count("host.left") == 1
    assert "rank.lost" not in kinds(database, job)
    (loaded,) = [event for event in told(database, job) if event.kind == "checkpoint.loaded"]
    assert loaded.data["step"] > 0, "what was trained since the last checkpoint was not saved"


def test_where_nobody_comes_the_job_goes_on_alone(
    database: Database, shared: Settings, storage: Storage, config: dict[str, Any]
) -> None:
    """Guards against a job that waits for ever."""
    config["training"]["epochs"] = 1
    job = submit(database, config=config)
    impatient = shared.model_copy(update={"hosts_wait_seconds": 0.5})
    Worker(impatient, database, storage, Bell(shared), Slots(2), command=TRAINER).drain()
    ended(database, job)
    (missing,) = [event for event in told(database, job) if event.kind == "hosts.missing"]
    assert missing.message == "1 of 2 hosts is here after 0.5 s: the training goes on with 1 of 2 ranks."


def test_a_job_is_paused_while_it_waits_for_hosts(
    database: Database, shared: Settings, storage: Storage, config: dict[str, Any]
) -> None:
    """Guards the stop button where no rank has begun."""
    job = submit(database, config=config)
    running = in_background(Worker(shared, database, storage, Bell(shared), Slots(1), command=TRAINER))
    until(lambda: trainers(), 60)
    time.sleep(0.5)
    with database.session() as session:
        jobs.request_pause(session, job.id)
    running.join(30)
    assert read(database, job.id).status is JobStatus.PAUSED
    assert trainers() == []
