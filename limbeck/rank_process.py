"""One rank: ``python -m limbeck.rank_process NUMBER COUNT DESCRIPTOR PARENT``, started by ``limbeck/launching.py``.

It gets its order through the descriptor and tells on it: ``("call", method of Callbacks, arguments)``, ``("parted",)``
when rank 0 goes on alone, and at the end ``("result", DistillResult)`` or ``("failed", Exception)``. Whatever comes in
after the order means stop; the end of the input means that the launcher has gone, and this process goes too.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from limbeck.callbacks import Callbacks, CheckpointInfo, Progress, Stage
from limbeck.config import DistillConfig
from limbeck.death import die_with_parent
from limbeck.launching import Order

_EXIT_FAILED = 1
_EXIT_ABANDONED = 75


class _Told(Callbacks):
    """The engine's callbacks on the other side of a connection."""

    def __init__(self, send: Callable[[Any], None], stop: threading.Event) -> None:
        self._send, self._stop = send, stop

    def on_stage(self, stage: Stage) -> None:
        self._call("on_stage", stage)

    def on_progress(self, progress: Progress) -> None:
        self._call("on_progress", progress)

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._call("on_metrics", step, dict(values))

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        self._call("on_event", kind, message, dict(data))

    def on_checkpoint(self, checkpoint: CheckpointInfo) -> None:
        self._call("on_checkpoint", checkpoint)

    def on_provenance(self, facts: Mapping[str, Any]) -> None:
        self._call("on_provenance", dict(facts))

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def _call(self, name: str, *arguments: Any) -> None:
        self._send(("call", name, arguments))


def _listen(connection: Connection[Any, Any], stop: threading.Event) -> None:
    with suppress(EOFError, OSError):
        while True:
            connection.recv()
            stop.set()
    os._exit(_EXIT_ABANDONED)


def _work(number: int, count: int, order: Order, send: Callable[[Any], None], stop: threading.Event) -> Any:
    from limbeck.engine import distill_here, failures_named
    from limbeck.ranks import Group

    callbacks = _Told(send, stop) if number == 0 else Callbacks()
    with failures_named():
        ranks = Group(number, count, order.meeting, order.threads, lambda: send(("parted",)))
    if ranks.leads:
        callbacks.on_event("ranks.met", f"{count} ranks share every batch.", {"ranks": count})
    return distill_here(
        DistillConfig.parse(order.config),
        order.workdir,
        callbacks,
        order.sources,
        order.checkpoint_seconds,
        order.expected,
        ranks,
    )


def _portable(error: Exception) -> Exception:
    """The error, or what is left of one that cannot be passed on."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a library's error does when it is copied
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if isinstance(copy, Exception) else RuntimeError(str(error))


def main(number: int, count: int, descriptor: int, parent: int) -> int:
    """Set the process up and do its part of the work; the exit code."""
    if sys.platform == "linux":
        die_with_parent(parent)
    faulthandler.enable()
    # Ctrl-C in a terminal is for the launcher.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(descriptor)
    order, stop = connection.recv(), threading.Event()
    threading.Thread(target=_listen, args=(connection, stop), name="listen", daemon=True).start()
    try:
        result = _work(number, count, order, connection.send, stop)
    except Exception as error:  # the boundary: what went wrong is said on the other side
        traceback.print_exc()
        connection.send(("failed", _portable(error)))
        return _EXIT_FAILED
    connection.send(("result", result))
    return 0


if __name__ == "__main__":
    code = main(*map(int, sys.argv[1:]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
