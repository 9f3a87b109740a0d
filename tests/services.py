"""Real Redis and PostgreSQL servers on free ports, of the loopback where nothing else is said, from the binaries on
this machine.

Each dies with the test process, however that ends: its launcher asks the kernel for it before it becomes the server.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import redis

LOOPBACK = "127.0.0.1"
_START_SECONDS = 30.0
# Changing the user clears the death signal, so the launcher changes the user first and asks afterwards.
_LAUNCHER = """
import ctypes, os, sys
user, parent = sys.argv[1], int(sys.argv[2])
if user:
    import pwd
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
ctypes.CDLL(None, use_errno=True).prctl(1, 9)
if os.getppid() != parent:
    raise SystemExit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class ServiceMissing(Exception):
    """The machine has no such server to start; the message says what was looked for."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """A server process in a folder of its own; ``kill`` and ``start`` again make the faults of the tests."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, *, ready: Callable[[], None], user: str = ""
    ) -> None:
        self.name = name
        self.folder = folder
        self._command = list(command)
        self._ready = ready
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def up(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        launcher = [sys.executable, "-I", "-c", _LAUNCHER, self._user, str(os.getpid()), *self._command]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                launcher, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._ready()
            except (OSError, psycopg.Error, redis.RedisError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} did not start: {error}\n{self.log()}") from error
                time.sleep(0.05)

    def kill(self) -> None:
        """``kill -9``, as a fault."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server, and remove its folder. Nobody needs what it holds; PostgreSQL frees its shared memory."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-2000:]

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class Redis(Service):
    def __init__(self, host: str = LOOPBACK) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise ServiceMissing("redis-server is not on the PATH")
        port = free_port()
        self.url = f"redis://{host}:{port}/0"
        folder = Path(tempfile.mkdtemp(prefix="limbeck-redis-"))
        options = {
            "port": port,
            "bind": host,
            "protected-mode": "no",
            "save": "",
            "appendonly": "no",
            "dir": folder,
        }
        command = [binary, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        super().__init__("Redis", command, folder, ready=self._ping)

    def _ping(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=2) as client:
            client.ping()


class Postgres(Service):
    def __init__(self, host: str = LOOPBACK) -> None:
        binaries = _postgres_binaries()
        port = free_port()
        self._address = f"postgres@{host}:{port}"
        self.url = f"postgresql+psycopg://{self._address}/postgres"
        self._spare: list[str] = []
        user = _postgres_user()
        folder = Path(tempfile.mkdtemp(prefix="limbeck-postgres-"))
        if user:
            shutil.chown(folder, user, user)
        data = folder / "data"
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "-N",
        ]
        launcher = [sys.executable, "-I", "-c", _LAUNCHER, user, str(os.getpid()), *initdb]
        done = subprocess.run(launcher, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder)
            raise RuntimeError(f"initdb failed: {done.stderr}")
        with (data / "pg_hba.conf").open("a") as allowed:
            allowed.write("host all all samenet trust\n")
        settings = {
            "fsync": "off",
            "listen_addresses": host,
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        options = (part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options]
        super().__init__("PostgreSQL", command, folder, ready=self._ping, user=user)

    def kill(self) -> None:
        """End at once, as after a crash; after ``kill -9`` its children would hold its memory for a while."""
        self._end(signal.SIGQUIT)

    def new_database(self) -> str:
        """The SQLAlchemy URL of an empty database."""
        if self._spare:
            name = self._spare.pop()
        else:
            name = f"limbeck_{uuid.uuid4().hex}"
            self._execute("postgres", f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://{self._address}/{name}"

    def recycle(self, url: str) -> None:
        """Empty a database for the next test: making and removing one costs hundreds of files each time."""
        name = url.rsplit("/", 1)[1]
        self._execute("postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        self._execute(name, "DROP SCHEMA public CASCADE")
        self._execute(name, "CREATE SCHEMA public")
        self._spare.append(name)

    def _execute(self, database: str, statement: str) -> None:
        with psycopg.connect(f"postgresql://{self._address}/{database}", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _ping(self) -> None:
        psycopg.connect(f"postgresql://{self._address}/postgres", connect_timeout=2).close()


def _postgres_binaries() -> Path:
    """The folder with ``initdb`` and ``postgres``: Debian keeps it off the PATH."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = [Path(found).parent for found in [shutil.which("initdb")] if found]
    for folder in [*packaged, *on_path]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServiceMissing("initdb and postgres are neither below /usr/lib/postgresql nor on the PATH")


def _postgres_user() -> str:
    """PostgreSQL refuses to run as root; then it runs as the user that its package made. Empty: as this user."""
    if os.geteuid() != 0:
        return ""
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise ServiceMissing("PostgreSQL does not run as root, and there is no user 'postgres'") from None
