"""Workers on two hosts that share PostgreSQL, Redis and S3 and nothing else; one is cut off in a training."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import select

from limbeck.config import DistillConfig
from models.attempt import Attempt
from models.db import Database
from models.event import Event
from models.job import Job, JobStatus
from models.model import Model, ModelKind
from models.repository import catalogue, jobs
from models.repository.catalogue import StoredFile
from models.settings import Settings
from models.storage import open_storage
from tests.conftest import absent
from tests.e2e.hosts import Host, joined_hosts, why_not
from tests.services import Postgres, Redis, ServiceMissing
from tests.tiny import write_tiny_bert, write_tiny_dataset
from tests.worker.processes import ROOT, until
from worker.queue import Bell

pytestmark = pytest.mark.services
MARK = "LIMBECK_TEST_MANY_HOSTS"
LEASE_SECONDS = 6.0


@dataclass
class Cluster:
    """What the hosts share, and the hosts."""

    settings: Settings
    database: Database
    hosts: Sequence[Host]
    folder: Path
    mark: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, host: Host, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """A process on a host, with that host's own disk; what it prints goes to its log, or to who talks to it."""
        own = self.settings.model_copy(
            update={
                "data_dir": self.folder / host.name,
                "scratch_dir": self.folder / host.name / "scratch",
                "ranks_host": host.address,
            }
        )
        values = own.model_dump(mode="json", exclude_none=True)
        values |= {"s3_access_key_id": "id", "s3_secret_access_key": "secret"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
        environment |= {f"LIMBECK_{name.upper()}": str(value) for name, value in values.items()}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), MARK: self.mark}
        with self.log(host).open("ab") as log:
            process = subprocess.Popen(
                host.command([sys.executable, *arguments]),
                cwd=ROOT,
                env=environment,
                stdin=stdin,
                stdout=log if stdin == subprocess.DEVNULL else subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def start_worker(self, host: Host) -> subprocess.Popen[str]:
        return self.start(host, "-m", "worker.death", str(os.getpid()), "worker")

    def log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def attempts(self, job: Job) -> list[Attempt]:
        with self.database.reading() as session:
            return list(session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.fence)))

    def events(self, job: Job, kind: str) -> list[Event]:
        with self.database.reading() as session:
            return list(session.scalars(select(Event).where(Event.job_id == job.id, Event.kind == kind)))

    def job(self, job: Job) -> Job:
        with self.database.reading() as session:
            return jobs.get(session, job.id)


@contextmanager
def _servers(address: str) -> Iterator[Settings]:
    """PostgreSQL, Redis and an S3, on the bridge alone."""
    try:
        redis, postgres = Redis(address), Postgres(address)
    except ServiceMissing as missing:
        absent(str(missing))
        raise
    bucket = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    bucket.start()
    try:
        redis.start()
        postgres.start()
        endpoint = f"http://{address}:{bucket.get_host_and_port()[1]}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        yield Settings(
            database_url=postgres.new_database(),
            broker_url=redis.url,
            storage_url="s3://bucket/limbeck",
            s3_endpoint=endpoint,
            s3_access_key_id="id",
            s3_secret_access_key="secret",
            lease_seconds=LEASE_SECONDS,
            heartbeat_seconds=1.5,
            grace_seconds=10,
            checkpoint_seconds=1,
            hosts_wait_seconds=20,
            reconcile_min_seconds=1,
            reconcile_max_seconds=2,
            retry_seconds=0,
            hub_offline=True,
        )
    finally:
        bucket.stop()
        postgres.stop()
        redis.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        absent(reason)
    mark = uuid.uuid4().hex
    with joined_hosts(2) as network, _servers(network.gateway) as settings:
        database = Database(settings)
        database.migrate()
        cluster = Cluster(settings, database, network.hosts, tmp_path, mark)
        try:
            yield cluster
        finally:
            for process in _marked(mark):
                with suppress(psutil.Error):
                    process.kill()
            for child in cluster.started:
                child.communicate()  # reaps it, and closes its pipes
            database.dispose()


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _submit(cluster: Cluster, folder: Path, **training: int) -> Job:
    """A job of some ten seconds, with teacher and data in the bucket."""
    storage = open_storage(cluster.settings)
    teacher, data = write_tiny_bert(folder / "teacher"), write_tiny_dataset(folder / "data", rows=160)
    files = [storage.put_file(path, f"models/t/{path.name}") for path in sorted(teacher.iterdir())]
    splits = {path.stem: storage.put_file(path, f"datasets/d/{path.name}") for path in data.glob("*.parquet")}
    with cluster.database.session() as session:
        model = catalogue.add_model(
            session,
            kind=ModelKind.TEACHER,
            name="tiny",
            files=[StoredFile(Path(one.key).name, one.key, one.bytes, one.sha256) for one in files],
        )
        facts = {name: {"rows": 0, "bytes": s.bytes, "sha256": s.sha256, "key": s.key} for name, s in splits.items()}
        dataset = catalogue.add_dataset(session, name="areas", splits=facts, profile={}, sha256="0" * 64)
        config: dict[str, Any] = {
            "teacher": {"source": f"model:{model.id}", "finetune": {"epochs": 16, "learning_rate": 5e-3}},
            "dataset": f"dataset:{dataset.id}",
            "student": 2,
            "evaluation": {"baseline": False},
            "training": {"epochs": 12, "learning_rate": 5e-3, "max_length": 32, "batch_size": 8} | training,
            "export": [],
        }
        job, _ = jobs.submit(
            session,
            name="moves",
            owner="default",
            priority=0,
            config=DistillConfig.parse(config).model_dump(mode="json"),
            method="kd",
            labels={},
            webhook_url=None,
            idempotency_key=None,
            request_hash=uuid.uuid4().hex,
            gpus=0,
            max_attempts=3,
        )
    return job


def _trainer_of(worker: subprocess.Popen[str]) -> psutil.Process | None:
    below = psutil.Process(worker.pid).children(recursive=True)
    return next((one for one in below if "worker.trainer" in one.cmdline()), None)


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.timeout(180)
def test_a_job_moves_from_a_host_that_is_cut_off_and_is_done_once(cluster: Cluster, tmp_path: Path) -> None:
    """Guards against a job that is lost with its host, and against a host that was cut off, goes on, and comes back
    with writes of its own."""
    first_host, second_host = cluster.hosts
    job = _submit(cluster, tmp_path / "upload")
    bell = Bell(cluster.settings)
    bell.ring()
    first = cluster.start_worker(first_host)
    until(lambda: cluster.attempts(job), 60)
    second = cluster.start_worker(second_host)
    late = cluster.start(first_host, str(Path(__file__).with_name("late_writer.py")), job.id, "1", stdin=PIPE)
    assert late.stdout is not None
    assert late.stdout.readline() == "ready\n"
    until(lambda: "slot(s)" in cluster.log(second_host).read_text(), 60)
    until(lambda: (cluster.job(job).checkpoint or {}).get("step"), 60)
    trainer = _trainer_of(first)
    assert trainer is not None

    first_host.cut_off()
    until(lambda: _gone(trainer), LEASE_SECONDS)
    stopped_at = datetime.now(UTC)
    until(lambda: len(cluster.attempts(job)) == 2, 30)
    lost, successor = cluster.attempts(job)
    assert stopped_at <= successor.started_at, "two hosts trained the job at once"
    assert (lost.outcome, lost.reason) == ("lost", "worker_lost")
    assert successor.resumed_from_step > 0, "the checkpoint in the bucket was not used"

    first_host.connect()
    said, _ = late.communicate("go\n", timeout=30)
    assert said.split("\n")[:-1] == ["beat refused", "record refused", "checkpoint refused", "end refused"]
    until(lambda: cluster.job(job).status.terminal, 90)
    time.sleep(1)
    _assert_done_once(cluster, job)
    assert first.poll() is None, cluster.log(first_host).read_text()
    for worker in (first, second):
        worker.terminate()
    assert [worker.wait(20) for worker in (first, second)] == [0, 0]
    bell.close()
    assert _marked(cluster.mark) == []


def _assert_done_once(cluster: Cluster, job: Job) -> None:
    ended = cluster.job(job)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert [one.outcome for one in cluster.attempts(job)] == ["lost", "succeeded"]
    assert (ended.progress or {})["step"] != 9_999
    with cluster.database.reading() as session:
        kinds = [event.kind for event in session.scalars(select(Event).where(Event.job_id == job.id))]
        students = session.scalars(select(Model).where(Model.job_id == job.id)).all()
    assert kinds.count("job.succeeded") == 1
    assert len(students) == 1


@pytest.mark.timeout(300)
def test_two_hosts_train_one_job_until_one_is_cut_off(cluster: Cluster, tmp_path: Path) -> None:
    """Guards addresses and interfaces, which one machine alone never needs, and a cable that is pulled: nobody is told,
    and torch would wait for days."""
    job = _submit(cluster, tmp_path / "upload", devices=2, hosts=2, epochs=80)
    bell = Bell(cluster.settings)
    bell.ring()
    workers = {host: cluster.start_worker(host) for host in cluster.hosts}
    (met,) = until(lambda: cluster.events(job, "ranks.met"), 90)
    assert met.message == "2 ranks on 2 hosts share every batch."
    (joined,) = cluster.events(job, "host.joined")
    until(lambda: (cluster.job(job).checkpoint or {}).get("step"), 60)
    (lender,) = (host for host, worker in workers.items() if f":{worker.pid}:" in joined.data["worker"])
    lent = [one for one in psutil.Process(workers[lender].pid).children(recursive=True)]
    assert any("limbeck.rank_process" in one.cmdline() for one in lent)

    lender.cut_off()
    (lost,) = until(lambda: cluster.events(job, "rank.lost"), 60)
    assert joined.data["worker"] in lost.message
    until(lambda: all(_gone(one) for one in lent), 30)
    until(lambda: cluster.job(job).status.terminal, 120)
    ended = cluster.job(job)
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, 1), ended.error
    assert [event.data["ranks"] for event in cluster.events(job, "ranks.met")] == [2, 1]
    assert (cluster.events(job, "checkpoint.loaded")[0].data or {})["step"] > 0
    lender.connect()
    for worker in workers.values():
        worker.terminate()
    assert [worker.wait(30) for worker in workers.values()] == [0, 0]
    bell.close()
    assert _marked(cluster.mark) == []
