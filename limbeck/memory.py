"""How much memory a training takes and may take: of a GPU by torch's own count, else of the host by the kernel's."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

#: Of what is free, what a training may take: fragments, other processes and longer validation texts need some, too.
_SHARE = 0.85
#: A control group without a limit says ``max``, or in version 1 a number that no machine has.
_NO_LIMIT = 1 << 60
#: What torch, and what it calls (the kernel, CUDA, cuBLAS, cuDNN), say in an error of no class of its own.
_RAN_OUT = ("allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out, however a library words it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _RAN_OUT)


class Memory(ABC):
    """The memory that tensors lie in."""

    #: Whether taking too much ends the process, rather than with an error that :func:`ran_out` knows.
    kills: bool

    @abstractmethod
    def used(self) -> int:
        """Bytes that this process holds now."""

    @abstractmethod
    def most(self, sharers: int) -> int | None:
        """Bytes that this process may hold, where so many share the memory; ``None``: not known."""

    @abstractmethod
    def forget_peak(self) -> None:
        """Have :meth:`peak` start again, without what an allocator has kept of earlier peaks."""

    @abstractmethod
    def peak(self) -> int:
        """The most that this process held since :meth:`forget_peak`, in bytes."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until what was asked for is computed."""


def memory_of(device: torch.device) -> Memory:
    return GpuMemory(device) if device.type == "cuda" else HostMemory()


class GpuMemory(Memory):
    """Of one GPU, which belongs to one rank."""

    kills = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def used(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def most(self, sharers: int) -> int | None:
        torch.cuda.empty_cache()
        return self.used() + round(_SHARE * torch.cuda.mem_get_info(self._device)[0])

    def forget_peak(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)


class HostMemory(Memory):
    """Of the machine, or of the control group (container) that this process is in; Linux alone tells.

    Args:
        root: of the file system.
    """

    kills = True

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._own = root / "proc/self"

    def used(self) -> int:
        return self._status("VmRSS")

    def most(self, sharers: int) -> int | None:
        free = [*self._free_of_machine(), *self._free_of_groups()]
        return self.used() + round(_SHARE * max(0, min(free)) / sharers) if free else None

    def forget_peak(self) -> None:
        with suppress(OSError):  # some sandboxes lack the file; the peak of the whole life is more, never less
            (self._own / "clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        return self._status("VmHWM")

    def settle(self) -> None:
        """It is computed when it is asked for."""

    def _status(self, name: str) -> int:
        return _kilobytes(self._own / "status", name) or 0

    def _free_of_machine(self) -> Iterator[int]:
        available = _kilobytes(self._root / "proc/meminfo", "MemAvailable")
        if available is not None:
            yield available

    def _free_of_groups(self) -> Iterator[int]:
        """What is left in this process's control group and in those around it."""
        with suppress(OSError):
            for line in (self._own / "cgroup").read_text(encoding="utf-8").splitlines():
                number, controllers, path = line.split(":", 2)
                if number == "0":
                    place, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
                elif "memory" in controllers.split(","):
                    place = "sys/fs/cgroup/memory"
                    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                else:
                    continue
                # Within a container the path may be the host's, and the group's files lie at the top.
                parts = Path(path.strip("/")).parts
                for depth in range(len(parts) + 1):
                    yield from _free_of_group(self._root / place / Path(*parts[:depth]), *names)


def _free_of_group(folder: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    """Pages of files that nobody has read lately go when memory is wanted, and so count as free."""
    with suppress(OSError, ValueError):  # no such group here, or no limit
        most = int((folder / limit).read_text(encoding="ascii"))
        if most < _NO_LIMIT:
            fields = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            yield most - int((folder / usage).read_text(encoding="ascii")) + int(fields.get(cached, 0))


def _kilobytes(file: Path, name: str) -> int | None:
    """A field of a file of the kernel's, in bytes."""
    with suppress(OSError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
