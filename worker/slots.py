"""What a worker can run at a time: its slots, each with a GPU where there are any, and a share of the cores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Taken = TypeVar("Taken")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one attempt runs."""

    gpus: tuple[str, ...]  #: as ``CUDA_VISIBLE_DEVICES`` names them; none on a CPU slot
    threads: int

    def environment(self) -> dict[str, str]:
        """Variables of the attempt's process; what the worker was started with goes before the thread counts."""
        chosen = {"OMP_NUM_THREADS": str(self.threads), "RAYON_NUM_THREADS": str(self.threads)}
        chosen = {name: os.environ.get(name, value) for name, value in chosen.items()}
        return chosen | {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}


class Slots:
    """The worker's slots. With GPUs there is one per GPU, and a job that asks for none has the one of its slot.

    Args:
        count: of CPU slots, where there are no GPUs.
        gpus: their ids.
    """

    def __init__(self, count: int, gpus: Sequence[str] = ()) -> None:
        self.total = len(gpus) or count
        self._threads = max(1, cores() // self.total)
        self._has_gpus = bool(gpus)
        self._free = list(gpus) or [""] * count
        self._lock = threading.Lock()

    @property
    def gpus(self) -> int:
        """How many there are, free or not."""
        return self.total if self._has_gpus else 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cpu_threads(self) -> int:
        """That a process has in a slot without a GPU; 0 where there is none."""
        threads = Place((), self._threads).environment()["OMP_NUM_THREADS"]
        return int(threads) if threads.isdigit() and not self._has_gpus else 0

    @contextmanager
    def take(
        self, claim: Callable[[int], Taken | None], needs: Callable[[Taken], int]
    ) -> Iterator[tuple[Taken, Place] | None]:
        """Claim something for free slots, and hold them within the block.

        Args:
            claim: takes a piece of work that needs at most so many GPUs, if there is one.
            needs: how many GPUs it gets; on a CPU slot its processes share the slot's cores.
        """
        # Under the lock, so that two claims do not count on the same GPU.
        with self._lock:
            taken = claim(len(self._free) if self._has_gpus else 0) if self._free else None
            slots = max(1, needs(taken)) if taken is not None and self._has_gpus else 1
            held = [self._free.pop() for _ in range(slots)] if taken is not None else []
        if taken is None:
            yield None
            return
        try:
            yield taken, Place(tuple(held) if self._has_gpus else (), self._threads * len(held))
        finally:
            with self._lock:
                self._free += held


def cores() -> int:
    """Processor cores that this process may use, also within a container's quota."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def find_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that a worker with this environment may use; MIG instances where a GPU is cut into some."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() and part.strip() != "-1")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found: list[str] = []
    for line in listed.splitlines():
        match = re.search(r"\(UUID: ((GPU|MIG)-[^)]+)\)", line)
        if match is None:
            continue
        if match[2] == "MIG" and found and found[-1].startswith("GPU-"):
            found.pop()  # the GPU that this is a part of
        found.append(match[1])
    return tuple(found)
