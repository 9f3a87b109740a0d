"""Fixtures that every folder of tests shares: real servers, and the shared test data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exported import exported, exported_pair_student, exported_student  # noqa: F401 - fixtures
from tests.services import Postgres, Redis, ServiceMissing


def _absent(reason: str) -> None:
    """Skip on a bare machine; fail in CI, where the services have to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"required in CI: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis for the whole run. Whoever kills or flushes it starts a ``tests.services.Redis`` of their own instead."""
    try:
        server = Redis()
    except ServiceMissing as missing:
        _absent(str(missing))
        return
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_url(redis_server: Redis) -> str:
    """``redis://127.0.0.1:…/0``; the tests of a run share it, so queues and keys want names of their own."""
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run, without fsync."""
    try:
        server = Postgres()
    except ServiceMissing as missing:
        _absent(str(missing))
        return
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> str:
    """``postgresql+psycopg://…`` of an empty database of the test's own."""
    return postgres_server.new_database()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The shared data sets: ``LIMBECK_TEST_DATA``, or ``../shared/data`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LIMBECK_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; LIMBECK_TEST_DATA names another folder")
    return folder
