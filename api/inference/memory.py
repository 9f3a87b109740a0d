"""Memory that was freed, and that the process still holds."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Hand it to the system, where the C library has a way (glibc).

    It keeps what is freed for the next allocation, in a heap for each of many threads. Students are loaded by all of
    them in turns, and what one left behind would not fit the next.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
