"""What a server process may take of its machine: open files, of which a connection is one, and threads."""

from __future__ import annotations

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
