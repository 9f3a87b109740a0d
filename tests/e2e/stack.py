"""The real processes: the supervisor with its API and worker, driven over sockets as a user drives them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Stack:
    process: subprocess.Popen[bytes]
    url: str
    data_dir: Path
    log: Path

    def family(self) -> list[psutil.Process]:
        """Every process below the supervisor, and itself."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


@contextmanager
def running_stack(data_dir: Path, environment: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """``limbeck up`` on a free port; ended by SIGTERM, and every process that it started with it."""
    port = free_port()
    log = data_dir.parent / f"{data_dir.name}.log"
    command = [sys.executable, "-m", "limbeck.cli", "up", "--port", str(port), "--data-dir", str(data_dir)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            start_new_session=True,
        )
    stack = Stack(process, f"http://127.0.0.1:{port}", data_dir, log)
    try:
        _wait_until_ready(stack)
        yield stack
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"limbeck up did not end within a minute of SIGTERM:\n{log.read_text()}") from None


def _wait_until_ready(stack: Stack) -> None:
    for _ in range(300):
        if stack.process.poll() is not None:
            raise AssertionError(f"limbeck up ended with {stack.process.returncode}:\n{stack.log.read_text()}")
        try:
            if httpx.get(f"{stack.url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"limbeck up was not ready within 30 s:\n{stack.log.read_text()}")
