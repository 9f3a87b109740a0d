"""What a server process may take of its machine: open files, of which a connection is one, threads, and pauses."""

from __future__ import annotations

import gc
import os
import resource

#: More than one process can serve.
_ENOUGH = 65_536


def allow_many_connections() -> int:
    """Raise the soft limit, which is often 1,024, as far as the hard one allows; a thousand open streams need more.

    Returns:
        The limit from now on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def encode_in_one_thread() -> None:
    """Let a thread that answers encode its texts itself, unless whoever started the process says otherwise: waking
    the tokenizers' pool takes longer than the texts of a window do, and the cores are busy with other windows."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def leave_lasting_objects_alone() -> None:
    """Have the garbage collector look at none of the objects that there are by now, which last as long as the process.

    To be called once everything is imported. A full collection goes through some hundred thousand of them, holds up
    every thread for it (100 ms on two cores, while they were all answering), and comes every second under load.
    """
    gc.collect()
    gc.freeze()
