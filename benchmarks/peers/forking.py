"""Many measurements from one loaded interpreter: each order is done in a fork, so that none sees another's memory.

Imports nothing but the standard library: both Limbeck's and the other trainers' processes run it. Importing torch and
transformers takes longer than many a measurement.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read orders, one JSON a line with ``result`` (a file's path) in it, until stdin ends; say when each is done.

    A fork is safe as long as this process itself has computed nothing: torch's threads start with the first operation.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_one(handle, order))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=out, flush=True)


def _one(handle: Callable[[dict[str, Any]], dict[str, Any]], order: dict[str, Any]) -> int:
    try:
        found = {**handle(order), "peak_bytes_whole": peak_bytes()}
        Path(order["result"]).write_text(json.dumps(found))
        return 0
    except BaseException:  # the fork's boundary: whatever it was, the parent says which order failed
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def peak_bytes() -> int:
    """The most memory that this process has held (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this system does not tell a process's peak memory")
