"""How much memory a process holds and may hold, as the kernel tells it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from limbeck.engine import failures_named
from limbeck.errors import OutOfMemory, RankLost
from limbeck.memory import HostMemory, memory_of, ran_out
from limbeck.ranks import _peers

MB = 1024**2


def kernel(root: Path, *, groups: str) -> HostMemory:
    """A kernel's files: 100 MB held, 1,000 MB free."""
    own = root / "proc" / "self"
    own.mkdir(parents=True)
    (own / "status").write_text(f"Name:\tpython\nVmHWM:\t{150 * 1024} kB\nVmRSS:\t{100 * 1024} kB\n")
    (own / "cgroup").write_text(groups)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {1000 * 1024} kB\n")
    return HostMemory(root)


def group(folder: Path, limit: str, used: int, cached: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, str(used), f"anon 5\n{names[2]} {cached}\n"), strict=True):
        (folder / ("memory.stat" if name == names[2] else name)).write_text(value)


NEW = ("memory.max", "memory.current", "inactive_file")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_without_limits_the_machine_is_what_there_is(tmp_path: Path) -> None:
    memory = kernel(tmp_path, groups="0::/a\n")
    assert memory.most(1) == 100 * MB + 850 * MB
    assert memory.most(2) == 100 * MB + 425 * MB
    assert (memory.used(), memory.peak()) == (100 * MB, 150 * MB)


@pytest.mark.parametrize("inner", [True, False], ids=["its own group", "one around it"])
def test_the_tightest_control_group_counts(tmp_path: Path, inner: bool) -> None:
    """Guards containers: the machine has plenty, and the kernel ends the process at the group's limit all the same."""
    memory = kernel(tmp_path, groups="0::/a/b\n")
    top = tmp_path / "sys/fs/cgroup"
    limits = (str(400 * MB), "max") if inner else ("max", str(400 * MB))
    group(top / "a" / "b", limits[0], 300 * MB, 100 * MB, NEW)
    group(top / "a", limits[1], 300 * MB, 100 * MB, NEW)
    assert memory.most(1) == 100 * MB + 170 * MB


def test_groups_of_the_first_version_are_read_too(tmp_path: Path) -> None:
    memory = kernel(tmp_path, groups="5:cpu:/x\n4:hugetlb,memory:/host/path\n0::/\n")
    group(tmp_path / "sys/fs/cgroup/memory", str(500 * MB), 400 * MB, 0, OLD)  # as a container sees its own
    assert memory.most(1) == 100 * MB + 85 * MB
    group(tmp_path / "sys/fs/cgroup/memory/host", str(2**63 - 4096), 0, 0, OLD)  # no limit
    assert memory.most(1) == 100 * MB + 85 * MB


def test_a_system_that_tells_nothing_has_no_limit(tmp_path: Path) -> None:
    memory = HostMemory(tmp_path)
    memory.forget_peak()
    assert (memory.most(1), memory.used(), memory.peak()) == (None, 0, 0)


def test_the_peak_is_what_was_held_since_it_was_forgotten() -> None:
    """Guards against the highest point of a whole life, under which every later part of a batch looks too large."""
    memory = memory_of(torch.device("cpu"))
    memory.forget_peak()
    held = memory.peak()
    taken = torch.ones(64 * MB // 4)
    assert memory.peak() >= held + 60 * MB
    del taken
    memory.forget_peak()
    assert memory.peak() <= held + 30 * MB
    most = memory.most(1)
    assert most is not None
    assert most > memory.used() > 30 * MB


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("unable to mmap 3000 bytes from file </dev/shm/x>: Cannot allocate memory (12)"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_memory_that_runs_out_is_known_however_it_is_worded(error: Exception, expected: bool) -> None:
    """Guards against a fault of Limbeck's own, which is not tried again, where a card is full when it is first used."""
    assert ran_out(error) is expected
    with pytest.raises(OutOfMemory if expected else type(error)), failures_named():
        raise error


def test_a_rank_without_memory_does_not_say_that_another_has_gone() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), _peers():
        raise RuntimeError("CUDA error: out of memory")
    with pytest.raises(RankLost), _peers():
        raise RuntimeError("Connection closed by peer")
