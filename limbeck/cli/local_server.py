"""A server of one's own for a while: started on a free port, awaited, and stopped without leaving a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.cli.server_commands import server_environment, supervisor_command
from limbeck.client import Client
from limbeck.errors import Unavailable

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


@contextmanager
def local_server(data_dir: Path, log: Path, *, slots: int = 1) -> Iterator[str]:
    """Run ``limbeck up`` and give its URL once it is ready.

    Args:
        data_dir: the server's data.
        log: where its output goes.
        slots: jobs at a time.

    Raises:
        Unavailable: it did not come up; the message has the end of its output.
    """
    port = free_port()
    command = supervisor_command(host="127.0.0.1", port=port, data_dir=data_dir, slots=slots)
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the server in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=server_environment(),
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(process, url, log)
        yield url
    finally:
        _stop(process)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Client(url, timeout=5) as client:
        while not client.ready():
            if process.poll() is not None:
                raise Unavailable(f"The server ended with exit code {process.returncode}:\n{_tail(log)}")
            if time.monotonic() > deadline:
                raise Unavailable(f"The server was not ready after {_START_SECONDS:.0f} s:\n{_tail(log)}")
            time.sleep(0.2)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; make it, should it not. An impatient second Ctrl-C does not leave it running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if process.poll() is None:
            process.terminate()
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
