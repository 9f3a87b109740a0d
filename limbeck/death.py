"""A child that ends with its parent, however the parent ends: the kernel sees to it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; call it first thing in the child.

    Args:
        parent: the parent's process id, as the parent passed it on: it may have died before this call.

    Raises:
        SystemExit: it has.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise SystemExit("The parent process is gone already.")
