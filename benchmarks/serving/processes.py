"""Servers as processes: started on a free port, awaited, weighed, and ended with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.report import ROOT
from limbeck.cli.local_server import free_port

#: A server with torch on a machine that is busy takes long.
START_SECONDS = 240.0


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], *, ready: str, folder: Path
) -> Iterator[tuple[str, int]]:
    """Its address and process id once ``ready`` answers; ``{port}`` in the command is the port.

    Raises:
        RuntimeError: it did not start; the message has the end of its output.
    """
    port = free_port()
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=True,
            cwd=ROOT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.02)
        yield url, process.pid
    finally:
        _end(process)


def pss(pid: int) -> float:
    """MB that the process and those below it hold, shared pages divided among their holders."""
    root = psutil.Process(pid)
    return sum(one.memory_full_info().pss for one in [root, *root.children(recursive=True)]) / 1024**2


@contextmanager
def peak_of(pid: int) -> Iterator[list[float]]:
    """The largest :func:`pss` while the block ran, as the one number in the list once it has ended."""
    found, ended = [pss(pid)], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            found[0] = max(found[0], pss(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind in its session
    except ProcessLookupError:
        pass
    process.wait()
