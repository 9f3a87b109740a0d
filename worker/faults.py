"""What the end of a trainer's process means."""

from __future__ import annotations

import signal
from pathlib import Path

from models.repository.settling import WORKER_LOST, Fault
from worker.trainer import EXIT_LEASE_OVER

_CGROUPS = Path("/sys/fs/cgroup")
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, in this cgroup or on this machine."""
    counted = 0
    for file in (*_memory_events(), Path("/proc/vmstat")):
        try:
            fields = dict(line.split(maxsplit=1) for line in file.read_text(encoding="ascii").splitlines())
            counted += int(fields.get("oom_kill", 0))
        except (OSError, ValueError):
            continue
    return counted


def fault_of(exit_code: int, *, oom_killed: bool) -> Fault:
    """The fault of a trainer that ended without a last word.

    Args:
        exit_code: as ``subprocess`` has it: the negative number of a signal.
        oom_killed: whether the kernel killed for memory while it ran.
    """
    if exit_code == EXIT_LEASE_OVER:
        return Fault(
            WORKER_LOST, "The worker stood still for longer than its lease; the training process ended itself.", True
        )
    if exit_code >= 0:
        return Fault(
            "crashed",
            f"The training process ended with exit code {exit_code} and gave no reason; its log may have one.",
            True,
        )
    name = _signal_name(-exit_code)
    if -exit_code == signal.SIGKILL and oom_killed:
        return Fault(
            "out_of_memory",
            "The machine ran out of memory and its kernel ended the training process. "
            'training.gradient_accumulation = "auto" computes batches in parts that fit; a smaller training.batch_size '
            "or training.max_length needs less, too.",
            True,
        )
    if -exit_code in _CRASHES:
        return Fault("crashed", f"The training process crashed ({name}); the job's log has where.", True)
    return Fault("killed", f"The training process was killed from outside ({name}).", True)


def stall_of(seconds: float) -> Fault:
    """The fault of a trainer that had to be ended because it said nothing for so long."""
    told = f"The training process did not get on for {seconds:g} s (LIMBECK_STALL_SECONDS) and was ended."
    return Fault("stalled", told, True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _memory_events() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(_CGROUPS / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control")
    return found
