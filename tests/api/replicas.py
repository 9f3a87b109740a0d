"""Processes of ``limbeck serve``, and clients that never stop asking."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Replica:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False


@contextmanager
def replica(environment: Mapping[str, str], log: Path) -> Iterator[Replica]:
    """``python -m api.serve`` on a socket of its own, ready."""
    with socket.socket() as bound, log.open("wb") as out:
        bound.bind(("127.0.0.1", 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "api.serve", "--fd", str(bound.fileno())],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            pass_fds=[bound.fileno()],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        started = Replica(process, f"http://127.0.0.1:{bound.getsockname()[1]}", log)
        # From here on the child alone holds it: once that closes it, nobody listens.
        bound.close()
        try:
            until(lambda: started.ready or process.poll() is not None, log)
            assert process.poll() is None, log.read_text()
            yield started
        finally:
            process.terminate()
            process.wait(60)


def until(true: Callable[[], bool], log: Path | None = None, seconds: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, log.read_text() if log else "it never came to be"
        time.sleep(0.02)


@dataclass
class Askers:
    """Clients that ask as fast as they can over connections that they keep.

    Each asks a replica that said it was ready when it was last looked at, as a load balancer does.
    """

    replicas: Sequence[Replica]
    path: str
    answered: dict[str, list[str]] = field(default_factory=dict)  #: label of each answer, by replica
    failed: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _in: list[Replica] = field(default_factory=list)

    @contextmanager
    def asking(self, clients: int = 4) -> Iterator[Askers]:
        self._in = list(self.replicas)
        self.answered = {one.url: [] for one in self.replicas}
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        threads.append(threading.Thread(target=self._look))
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(60)

    def heard(self, label: str, *, everywhere: bool = True) -> bool:
        """Whether the last answer of every replica had this label."""
        last = [labels[-1] == label for labels in self.answered.values() if labels]
        return len(last) == len(self.answered) and all(last)

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self._in = [one for one in self.replicas if one.ready]

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=60) as http:
            while not self._ended.is_set():
                number += 1
                url = self._in[number % len(self._in)].url
                try:
                    answer = http.post(f"{url}{self.path}", json={"inputs": "a text"})
                except httpx.TransportError as error:
                    self.failed.append(f"{url}: {error!r}")
                    continue
                if answer.status_code == 200:
                    self.answered[url].append(answer.json()[0]["label"])
                else:
                    self.failed.append(f"{url}: {answer.status_code} {answer.text}")
