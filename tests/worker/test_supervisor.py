"""``limbeck up`` refuses what cannot work with one clear line. How it runs and ends is in ``tests/e2e``."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from limbeck.runtime.providers import installed
from models.settings import Settings, unknown_variables
from tests.services import free_port
from worker.queue import require_broker


def up(data_dir: Path, *more: str, port: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck.cli", "up", "--data-dir", str(data_dir), "--port", str(port), *more]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_port_in_use_is_one_clear_line_and_exit_code_2(tmp_path: Path, taken_port: int) -> None:
    done = up(tmp_path / "data", port=taken_port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"limbeck: port {taken_port} on 127.0.0.1 is in use by another program; choose another with --port\n"
    )
    assert not (tmp_path / "data").exists()


def test_a_data_folder_in_use_is_one_clear_line_and_exit_code_2(tmp_path: Path) -> None:
    """Guards against two servers over one SQLite file and one broker folder."""
    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        done = up(tmp_path, port=free_port())
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"is in use by another `limbeck up` (process {os.getpid()})" in done.stderr


def test_an_address_that_is_not_here_is_one_clear_line(tmp_path: Path) -> None:
    done = up(tmp_path / "data", "--host", "192.0.2.1", port=free_port())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "192.0.2.1" in done.stderr


def test_a_data_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = up(tmp_path / "file" / "data", port=free_port())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    done = up(tmp_path / "file", port=free_port())
    assert (done.returncode, done.stderr) == (
        2,
        f"limbeck: the data folder {tmp_path / 'file'} cannot be used: it is no folder\n",
    )


def test_a_full_disk_is_one_clear_line(full_disk: Path) -> None:
    with (full_disk / "all").open("wb", buffering=0) as filling, suppress(OSError):
        while filling.write(bytes(4096)):
            pass
    done = up(full_disk, port=free_port())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"limbeck: the data folder {full_disk} cannot be used: No space left on device\n"


_STORAGE = ("LIMBECK_STORAGE_URL", "file:///dev/null/x", "The folder of LIMBECK_STORAGE_URL cannot be used: /dev/null")
_SCRATCH = ("LIMBECK_SCRATCH_DIR", "/dev/null/x", "The folder of LIMBECK_SCRATCH_DIR cannot be used: /dev/null/x: Not")
_ROWS = ("LIMBECK_DATABASE_URL", "sqlite:////dev/null/x/y.db", "The database's folder cannot be used: /dev/null/x: Not")


@pytest.mark.parametrize(
    ("program", "name", "value", "said"),
    [("up", *_STORAGE), ("up", *_SCRATCH), ("up", *_ROWS), ("api", *_STORAGE), ("api", *_SCRATCH)],
)
def test_a_folder_that_cannot_be_made_is_one_clear_line(
    program: str, name: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against children that die of it with a traceback, and are started again for ever."""
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("LIMBECK_DATA_DIR", str(tmp_path / "data"))
    if program == "up":
        done = up(tmp_path / "data", port=free_port())
    else:
        command = [sys.executable, "-m", "api", "--port", str(free_port())]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"limbeck: {said}")


def test_a_database_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "limbeck.db").write_bytes(b"no database at all, but some bytes " * 300)
    done = up(tmp_path, port=free_port())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "limbeck: The database file is damaged: file is not a database\n"


def test_a_provider_that_is_not_installed_is_one_clear_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against an API that ends at once and is started again for ever, with a traceback each time."""
    missing = next(name for name in ("openvino", "cuda") if name not in installed())
    monkeypatch.setenv("LIMBECK_PREDICT_PROVIDERS", missing)
    done = up(tmp_path / "data", port=free_port())
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert f"LIMBECK_PREDICT_PROVIDERS cannot be used: {missing} is not in this ONNX Runtime" in done.stderr
    assert not (tmp_path / "data").exists()


_BEAT = "LIMBECK_HEARTBEAT_SECONDS has to be at most half of LIMBECK_LEASE_SECONDS"
_UNSET = "in production these have no default and have to be set: LIMBECK_DATABASE_URL, "


@pytest.mark.parametrize(
    ("program", "name", "value", "said"),
    [
        ("limbeck up", "LIMBECK_SLOTS", "many", "LIMBECK_SLOTS: Input should be a valid integer"),
        ("limbeck up", "LIMBECK_HEARTBEAT_SECONDS", "50", _BEAT),
        ("limbeck up", "LIMBECK_ENVIRONMENT", "production", _UNSET),
        ("limbeck up", "LIMBECK_STORAGE_URL", "gs://bucket", "LIMBECK_STORAGE_URL is 'gs://bucket'; allowed: file:///"),
        ("limbeck up", "LIMBECK_BROKER_URL", "foo://me:secret@host", "LIMBECK_BROKER_URL begins with 'foo://'"),
        ("limbeck up", "LIMBECK_BROKER_URL", "me:secret@host:6379", "LIMBECK_BROKER_URL has no '://'"),
        ("limbeck up", "LIMBECK_DATABASE_URL", "me:secret@host", "LIMBECK_DATABASE_URL is no address; allowed: sqlite"),
        ("api", "LIMBECK_STORAGE_URL", "gs://bucket", "LIMBECK_STORAGE_URL is 'gs://bucket'"),
        ("api", "LIMBECK_DATABASE_URL", "me:secret@host", "LIMBECK_DATABASE_URL is no address; allowed: sqlite"),
        ("worker", "LIMBECK_STORAGE_URL", "gs://bucket", "LIMBECK_STORAGE_URL is 'gs://bucket'"),
        ("limbeck up", "LIMBECK_RANKS_HOST", "203.0.113.9", "LIMBECK_RANKS_HOST may name one"),
        ("worker", "LIMBECK_RANKS_HOST", "203.0.113.9", "no network interface whose first IPv4 address is 203.0.113.9"),
        ("worker", "LIMBECK_RANKS_HOST", "nobody.invalid", "LIMBECK_RANKS_HOST: 'nobody.invalid' is found under no"),
        ("worker", "LIMBECK_BROKER_URL", "foo://me:secret@host", "LIMBECK_BROKER_URL begins with 'foo://'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line_that_names_its_variable(
    program: str, name: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a worker that dies of it again and again, while the API says that it is ready."""
    monkeypatch.setenv(name, value)
    if program == "limbeck up":
        done = up(tmp_path / "data", port=free_port())
    else:
        command = [sys.executable, "-m", program, *(["--port", str(free_port())] if program == "api" else [])]
        environment = os.environ | {"LIMBECK_DATA_DIR": str(tmp_path / "data")}
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=120
        )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert done.stderr.startswith("limbeck: ")
    assert said in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("address", ["redis://h/0", "redis+socket:///run/redis.sock", "sentinel://h:26379/0"])
def test_brokers_that_celery_knows_are_taken_however_they_are_reached(address: str, tmp_path: Path) -> None:
    require_broker(Settings.model_validate({"data_dir": tmp_path, "broker_url": address}))


def test_a_variable_that_nothing_reads_is_told(tmp_path: Path) -> None:
    """Guards against a setting with a typo, which changes nothing and says nothing."""
    found = unknown_variables(["LIMBECK_SLOT", "LIMBECK_SLOTS", "LIMBECK_URL", "PATH", "LIMBECK_XYZ"])
    assert found == [
        "LIMBECK_SLOT is no setting of the server, and changes nothing; is LIMBECK_SLOTS meant?",
        "LIMBECK_XYZ is no setting of the server, and changes nothing",
    ]
