"""``limbeck up``: one API and one worker on one machine, started, watched and ended together."""

from __future__ import annotations

import argparse
import errno
import fcntl
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from limbeck.errors import Conflict, InvalidInput, LimbeckError
from models.db import Database
from models.engine import database_address
from models.providers import require_providers
from models.scratch import make
from models.settings import Settings, complaint, refuse
from models.storage import open_storage, require_storage
from worker.invitations import require_own_address
from worker.queue import require_broker

_TICK = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
#: A child that ran for so long is not failing at its start.
_STEADY_SECONDS = 60.0
#: What ending takes beyond the grace of the jobs.
_END_SECONDS = 15.0


def say(line: str, name: str = "limbeck") -> None:
    """One prefixed line. A reader that went away (``limbeck up | head``) must not stop the server."""
    with suppress(OSError, ValueError):
        sys.stdout.write(f"{name:<8}| {line}\n")
        sys.stdout.flush()


class Child:
    """A process that is started again when it ends by itself.

    It has a session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then ends it in order.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int] = ()
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", "worker.death", str(os.getpid()), *arguments]
        self._environment = dict(environment)
        self._descriptors = tuple(descriptors)
        self._pause = _FIRST_PAUSE
        self._start_at = 0.0
        self._started_at = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def keep_running(self) -> None:
        """Start it, or start it again once its pause is over."""
        now = time.monotonic()
        if self._process is not None and (code := self._process.poll()) is not None:
            self._pause = _FIRST_PAUSE if now - self._started_at > _STEADY_SECONDS else self._pause
            say(f"{self.name} ended with {_end_of(code)}; it is started again in {self._pause:.1f} s")
            self._process, self._start_at = None, now + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if self._process is None and now >= self._start_at:
            self._start(now)

    def tell(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def end(self) -> None:
        """Kill what is left of its session, and let its last words through."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._reader is not None:
            self._reader.join(2)

    def _start(self, now: float) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=self._descriptors,
            start_new_session=True,
        )
        self._started_at = now
        self._reader = threading.Thread(target=self._pass_on, args=(self._process,), daemon=True)
        self._reader.start()

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                say(line.rstrip("\n"), self.name)


class Supervisor:
    """Keeps the children running until a signal comes.

    Args:
        address: where one of them answers ``/readyz``.
        grace_seconds: that they may take to end.
        farewell: what is said when they are told to.
    """

    def __init__(
        self,
        children: Sequence[Child],
        address: tuple[str, int],
        grace_seconds: float,
        farewell: str = "stopping: running jobs write a checkpoint and are handed back; "
        "Ctrl-C again does not wait for that",
    ) -> None:
        self._children = children
        self._address = address
        self._grace = grace_seconds
        self._farewell = farewell
        self._signals = 0

    def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._hear)
        threading.Thread(target=self._say_when_ready, daemon=True).start()
        try:
            while not self._signals:
                for child in self._children:
                    child.keep_running()
                time.sleep(_TICK)
            self._end()
        finally:
            for child in self._children:
                child.end()

    def _hear(self, number: int, frame: object) -> None:
        self._signals += 1

    def _end(self) -> None:
        say(self._farewell)
        told = 0
        deadline = time.monotonic() + self._grace + _END_SECONDS
        while any(child.runs for child in self._children):
            if told < min(self._signals, 2):
                told += 1
                for child in self._children:
                    child.tell(signal.SIGTERM)
            if time.monotonic() > deadline:
                say("not everything ended in time; the rest is killed")
                return
            time.sleep(_TICK)

    def _say_when_ready(self) -> None:
        host, port = self._address
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        while not self._signals and not _answers(reachable, port):
            time.sleep(_TICK)
        if not self._signals:
            shown = f"[{reachable}]" if ":" in reachable else reachable
            say(f"Limbeck is ready on http://{shown}:{port}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="limbeck up")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--slots", type=int)
    given = parser.parse_args(arguments)
    chosen = {"data_dir": given.data_dir, "slots": given.slots}
    try:
        settings = Settings(**{name: value for name, value in chosen.items() if value is not None})
        require_providers(settings)
        database_address(settings.database_url)
        require_storage(settings)
        require_broker(settings)
        require_own_address(settings)
        with bind(given.host, given.port) as listener, _alone_in(settings.data_dir):
            _prepare(settings)
            _supervise(settings, listener)
    except ValidationError as error:
        return refuse(complaint(error))
    except (Conflict, InvalidInput) as error:
        return refuse(error.message)
    except LimbeckError as error:
        sys.stderr.write(f"limbeck: {error.message}\n")
        return 1
    say("stopped")
    return 0


def _supervise(settings: Settings, listener: socket.socket) -> None:
    environment = {
        **os.environ,
        "LIMBECK_DATA_DIR": str(settings.data_dir),
        "LIMBECK_SLOTS": str(settings.slots),
        "PYTHONUNBUFFERED": "1",
    }
    api = Child("api", ["api", "--fd", str(listener.fileno())], environment, [listener.fileno()])
    worker = Child("worker", ["worker"], environment)
    host, port = listener.getsockname()[:2]
    say(f"starting; everything is kept below {settings.data_dir}")
    Supervisor([api, worker], (host, port), settings.grace_seconds).run()


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is started.

    Raises:
        Conflict: it cannot be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Listening from now on: two sockets that are only bound can share a port.
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"port {port} on {host} is in use by another program; choose another with --port") from error
        raise Conflict(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    except OverflowError as error:
        raise Conflict(f"{port} is not a port; allowed: 0 to 65535") from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the data folder for this process.

    Raises:
        Conflict: another ``limbeck up`` has it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "up.lock").open("ab+", buffering=0)  # what cannot be written is then told by the write
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise Conflict(f"the data folder {folder} cannot be used: {reason}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip() or "?"
            raise Conflict(
                f"the data folder {folder} is in use by another `limbeck up` (process {holder}); "
                "stop that one, or choose another folder with --data-dir"
            ) from error
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        except OSError as error:
            raise Conflict(f"the data folder {folder} cannot be used: {error.strerror}") from error
        yield


def _prepare(settings: Settings) -> None:
    """What the children would fail at, each time that they are started again.

    Raises:
        Conflict: a newer Limbeck has written the database.
        Unavailable, StorageFull: a folder, or the database, cannot be used.
    """
    assert settings.scratch_dir is not None  # Settings fills it in
    make(settings.scratch_dir)
    open_storage(settings)
    database = Database(settings)
    try:
        database.migrate()
    finally:
        database.dispose()


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end_of(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


if __name__ == "__main__":
    sys.exit(main())
