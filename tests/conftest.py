"""Fixtures that every folder of tests shares: real servers, and the shared test data."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from limbeck.timing import SECONDS_VARIABLE
from tests.exported import (  # noqa: F401 - fixtures
    exported,
    exported_exits_student,
    exported_pair_student,
    exported_student,
)
from tests.services import Postgres, Redis, Service, ServiceMissing

Server = TypeVar("Server", bound=Service)
_SERVERS = {"redis_server", "own_redis", "postgres_server", "own_postgres"}
#: Folders whose tests start processes and wait for them.
_STARTING = {"api", "models", "worker", "e2e"}
#: Files of theirs that start none and have no deadlines to miss, as the library's.
_QUIET = {
    *(f"api/test_{name}.py" for name in ("aliases", "archives", "datasets", "errors", "image_files", "job_lists")),
    *(f"api/test_{name}.py" for name in ("job_verbs", "jobs", "models", "openapi", "transfer", "waiting")),
    *(f"models/test_{name}.py" for name in ("backup", "catalogue", "crew", "jobs", "queue", "reruns", "retention")),
    *(f"models/test_{name}.py" for name in ("overview", "storage", "telemetry", "upgrades")),
    "e2e/test_seed_rows.py",  # one that does: its jobs compute, and have minutes to do so in
}


def pytest_configure() -> None:
    """A shell that starts the tests in the background has SIGINT ignored, and every process would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tiny models are timed for as long as large ones, which is two thirds of a test's job; processes inherit this.
    os.environ.setdefault(SECONDS_VARIABLE, "0.05")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server as ``services``, and say what `make test`'s two processes may share out.

    All that starts processes is one group: two such tests at a time on two cores would miss each other's deadlines. The
    library's tests, and what else is quiet, are groups by file, beside it; both sides take about as long.
    """
    for item in items:
        folder, file = item.path.parent.name, f"{item.path.parent.name}/{item.path.name}"
        starting = folder in _STARTING and file not in _QUIET
        item.add_marker(pytest.mark.xdist_group("processes" if starting else file))
        if _SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("services")


def absent(reason: str) -> None:
    """Skip on a bare machine; fail in CI, where the services have to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"required in CI: {reason}")
    pytest.skip(reason)


def _running(kind: Callable[[], Server]) -> Iterator[Server]:
    try:
        server = kind()
    except ServiceMissing as missing:
        absent(str(missing))
        return
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis for the whole run; whoever kills or flushes one takes ``own_redis``."""
    yield from _running(Redis)


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A Redis that the test may do anything to."""
    yield from _running(Redis)


@pytest.fixture(scope="session")
def redis_url(redis_server: Redis) -> str:
    """``redis://127.0.0.1:…/0``; the tests of a run share it, so queues and keys want names of their own."""
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run, without fsync; whoever kills one takes ``own_postgres``."""
    yield from _running(Postgres)


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the test may do anything to."""
    yield from _running(Postgres)


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """``postgresql+psycopg://…`` of an empty database of the test's own."""
    url = postgres_server.new_database()
    yield url
    postgres_server.recycle(url)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1m limbeck-test {folder} 2>/dev/null"):
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield folder
    os.system(f"umount {folder}")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The shared data sets: ``LIMBECK_TEST_DATA``, or ``../shared/data`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LIMBECK_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; LIMBECK_TEST_DATA names another folder")
    return folder
