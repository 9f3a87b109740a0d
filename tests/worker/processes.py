"""Real worker processes for tests, and looking after what they start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from models.settings import Settings
from worker.service import Worker

ROOT = Path(__file__).parents[2]
STAND_INS = (str(Path(__file__).with_name("stand_in_worker.py")),)


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What ``condition`` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def in_background(worker: Worker) -> threading.Thread:
    """Let it run what is due."""
    thread = threading.Thread(target=worker.drain)
    thread.start()
    return thread


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for one in processes:
        try:
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


def trainers(pid: int | None = None, kind: str = "trainer") -> list[psutil.Process]:
    """The trainers below a process, by default this one; not the servers that tests start beside them."""
    try:
        below = alive(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []
    return [one for one in below if kind in " ".join(_command(one))]


def answerers(pid: int | None = None) -> list[psutil.Process]:
    """Likewise those that help with another job's pass."""
    return trainers(pid, "answerer")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def environment(settings: Settings) -> dict[str, str]:
    """These settings, for a process of their own."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {**os.environ, "OMP_NUM_THREADS": "1"} | {
        f"LIMBECK_{name.upper()}": str(value) for name, value in values.items()
    }


@contextmanager
def worker_process(settings: Settings, program: Sequence[str] = STAND_INS) -> Iterator[psutil.Popen]:
    """A worker, with the stand-ins if nothing else is said; killed at the end, with everything that it started."""
    log = settings.data_dir / "worker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = psutil.Popen(
            [sys.executable, *program], cwd=ROOT, env=environment(settings), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
