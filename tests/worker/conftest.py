from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from limbeck.offer import Offer, Part
from models.db import Database
from models.job import Job
from models.repository import jobs, telemetry
from models.settings import Settings
from models.storage import Storage, open_storage
from worker import parts
from worker.lease import Claim, Holder, claim, commit_checkpoint
from worker.queue import Bell
from worker.service import Worker
from worker.slots import Slots

STAND_IN = (sys.executable, str(Path(__file__).parent / "stand_in_trainer.py"))
STAND_IN_ANSWERER = (sys.executable, str(Path(__file__).parent / "stand_in_answerer.py"))
HOLDER = Holder("test:1", "test", 1)
LIKE = "a processor, torch 2"
OFFER = Offer("a" * 64, "teacher", LIKE, 2, tuple(Part(number, number + 1) for number in range(4)))

Submit = Callable[..., Job]


#: For tests that wait for a lease's end. A worker that a busy machine holds up for longer has lost its job.
BRIEF = {"lease_seconds": 5}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A lease that does not run out on a busy machine."""
    return Settings(
        data_dir=tmp_path / "data",
        lease_seconds=60,
        heartbeat_seconds=0.5,
        grace_seconds=5,
        checkpoint_seconds=0.2,
        reconcile_min_seconds=0.5,
        reconcile_max_seconds=1,
        retry_seconds=0,
    )


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def on_both(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """The settings with SQLite, and with PostgreSQL where it is found."""
    if request.param == "sqlite":
        return settings
    return settings.model_copy(update={"database_url": request.getfixturevalue("postgres_url")})


def open_database(settings: Settings) -> Database:
    database = Database(settings)
    database.migrate()
    return database


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = open_database(settings)
    yield opened
    opened.dispose()


@pytest.fixture
def either(on_both: Settings) -> Iterator[Database]:
    opened = open_database(on_both)
    yield opened
    opened.dispose()


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings)


def submit(database: Database, **given: Any) -> Job:
    """A job for the stand-in trainer; ``does`` is what it is told to do."""
    does = given.pop("does", {})
    config = {
        "teacher": {"source": "builtin:minilm-l6"},
        "dataset": {"source": "builtin:stdlib-docstrings"},
        "does": does,
    }
    values: dict[str, Any] = {
        "name": "a job",
        "owner": "default",
        "priority": 0,
        "config": config,
        "method": "kd",
        "labels": {},
        "webhook_url": None,
        "idempotency_key": None,
        "request_hash": uuid.uuid4().hex,
        "gpus": 0,
        "max_attempts": 3,
    }
    with database.session() as session:
        return jobs.submit(session, **(values | given))[0]


def read(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return jobs.get(session, job_id)


def claim_one(
    database: Database, *, lease_seconds: float = 60, gpus: int = 0, most: int | None = None, holder: Holder = HOLDER
) -> Claim | None:
    with database.session() as session:
        return claim(session, holder, lease_seconds=lease_seconds, gpus=gpus, most=most)


def expire(database: Database, job_id: str) -> None:
    """Let the lease, or the wait before a retry, be over."""
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=datetime.fromtimestamp(1, UTC)))


def steal(database: Database, job_id: str) -> Claim:
    """Claim a job as if its worker had let the lease run out, before that worker can renew it."""
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=datetime.fromtimestamp(1, UTC)))
        stolen = claim(session, HOLDER, lease_seconds=60, gpus=0)
    assert stolen is not None
    assert stolen.job.id == job_id
    return stolen


def worker_on(storage: Storage, settings: Settings, database: Database) -> Worker:
    """A worker of another storage, or of other settings, than the fixtures'."""
    return Worker(settings, database, storage, Bell(settings), Slots(1), command=STAND_IN)


def events(database: Database, job_id: str) -> list[str]:
    """The kinds of what a job has told."""
    with database.reading() as session:
        return [event.kind for event in telemetry.events_after(session, job_id, 0, 1000)]


def offered(database: Database, offer: Offer = OFFER) -> Claim:
    """A job that runs and offers these parts of its teacher's pass."""
    job = submit(database)
    running = claim_one(database)
    assert running is not None
    assert running.job.id == job.id
    files = {f"{role}.0.safetensors": {"sha256": "0", "bytes": 1, "key": role} for role in ("data", "teacher")}
    with database.session() as session:
        commit_checkpoint(session, running.lease, {"version": 1, "step": 0, "files": files})
        assert parts.offer(session, running.lease, offer)
    return running


@pytest.fixture
def worker(settings: Settings, database: Database, storage: Storage) -> Iterator[Worker]:
    """A worker whose jobs are done by ``stand_in_trainer.py``; ``drain`` runs what is due."""
    bell = Bell(settings)
    yield Worker(settings, database, storage, bell, Slots(1), command=STAND_IN)
    bell.close()
