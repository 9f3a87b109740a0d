"""A database built by the migrations, once on SQLite and once on PostgreSQL; and ways to fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from models.db import Database
from models.job import Job, JobStatus
from models.repository import jobs
from models.settings import Settings
from models.tables import METADATA
from tests.services import Postgres

Submit = Callable[..., Job]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'limbeck.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: Postgres) -> Iterator[Database]:
    """One migrated PostgreSQL database for the run; ``database`` empties it."""
    database = Database(Settings(database_url=postgres_server.new_database()))
    database.migrate()
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database with the migrated schema."""
    if request.param == "postgresql":
        shared: Database = request.getfixturevalue("migrated_postgres")
        tables = ", ".join(table.name for table in METADATA.sorted_tables)
        with shared.session() as session:
            session.execute(text(f"TRUNCATE {tables}"))
        yield shared
        return
    own = Database(Settings(data_dir=tmp_path))
    own.migrate()
    yield own
    own.dispose()


@pytest.fixture
def submit(database: Database) -> Submit:
    """Submit a job in a transaction of its own; keywords replace the defaults."""

    return partial(submit_to, database)


def submit_to(database: Database, **changes: Any) -> Job:
    with database.session() as session:
        return jobs.submit(session, **request(**changes))[0]


def request(**changes: Any) -> dict[str, Any]:
    """What ``jobs.submit`` takes."""
    values: dict[str, Any] = {
        "name": "a job",
        "owner": "default",
        "priority": 0,
        "config": config(),
        "method": "kd",
        "labels": {},
        "webhook_url": None,
        "idempotency_key": None,
        "request_hash": "h",
        "gpus": 0,
        "max_attempts": 3,
    }
    return values | changes


def config(*, teacher: str = "builtin:minilm-l6", dataset: str = "builtin:stdlib-docstrings") -> dict[str, Any]:
    return {
        "version": 1,
        "teacher": {"source": teacher, "revision": None},
        "dataset": {"source": dataset, "revision": None},
        "training": {"seed": 7},
    }


def set_status(database: Database, job_id: str, status: JobStatus, **values: Any) -> None:
    """What a worker would have written."""
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=status, **values))
