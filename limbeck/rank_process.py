"""One rank: ``python -m limbeck.rank_process NUMBER DESCRIPTOR PARENT``, started by
``limbeck/rank_children.py``.

It gets its order through the descriptor and tells on it: ``("arrived", number)`` where the ranks meet, ``("call",
method of Callbacks, arguments)``, ``("answers wanted", key)`` and ``("answers used", key)`` of a teacher's,
``("parted",)`` when rank 0 goes on alone, and at the end ``("result", DistillResult)`` or ``("failed", Exception)``. It
hears ``("stop",)`` and ``("answers", key)``: those that it wanted have come, or there are none. At the end of the input
the launcher has gone, and this process goes too.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any

from limbeck.callbacks import Callbacks, CheckpointInfo, Progress, Stage
from limbeck.death import die_with_parent
from limbeck.errors import Interrupted, RankLost
from limbeck.rank_children import Order

_EXIT_FAILED = 1
_EXIT_ABANDONED = 75


class _Told(Callbacks):
    """The engine's callbacks on the other side of a connection."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._stop = threading.Event()
        self._answers: Queue[str] = Queue()
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Hear the launcher, in a thread of its own; ends the process when the launcher has gone."""
        with suppress(EOFError, OSError):
            while True:
                match self._connection.recv():
                    case ("stop",):
                        self.stop()
                    case ("answers", str(key)):
                        self._answers.put(key)
        os._exit(_EXIT_ABANDONED)

    def stop(self) -> None:
        self._stop.set()

    def send(self, *message: Any) -> None:
        with self._lock:  # downloads poll from threads of their own
            self._connection.send(message)

    def fetch_answers(self, key: str) -> None:
        """Have the launcher bring a teacher's answers to the folder; return when it has, or has none."""
        self.send("answers wanted", key)
        self._answers.get()

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

    def on_alive(self) -> None:
        self._call("on_alive")

    def should_stop(self) -> bool:
        return self._stop.is_set()

    def _call(self, name: str, *arguments: Any) -> None:
        self.send("call", name, arguments)


def _work(number: int, order: Order, told: _Told) -> Any:
    from limbeck.engine import distill_here, failures_named
    from limbeck.ranks import Group
    from limbeck.teacher_cache import TeacherCache

    with failures_named():
        meeting, arrived, parted = order.meeting, partial(told.send, "arrived", number), partial(told.send, "parted")
        ranks = Group(number, meeting, order.threads, arrived, parted)
    teacher_cache = None
    if order.answers is not None:
        folder, limit, share_seconds = order.answers
        used = partial(told.send, "answers used")
        teacher_cache = TeacherCache(
            folder, limit=limit, fetch=told.fetch_answers, used=used, share_seconds=share_seconds
        )
    if ranks.leads:
        count, hosts = order.meeting.count, order.meeting.hosts
        where = f" on {hosts} hosts" * (hosts > 1)
        told.on_event("ranks.met", f"{count} ranks{where} share every batch.", {"ranks": count, "hosts": hosts})
    return distill_here(order.assignment, told if ranks.leads else Callbacks(), teacher_cache, ranks)


def _portable(error: Exception) -> Exception:
    """The error, or what is left of one that cannot be passed on."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a library's error does when it is copied
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if isinstance(copy, Exception) else RuntimeError(str(error))


def main(number: int, descriptor: int, parent: int) -> int:
    """Set the process up and do its part of the work; the exit code."""
    if sys.platform == "linux":
        die_with_parent(parent)
    faulthandler.enable()
    # Ctrl-C in a terminal is for the launcher.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(descriptor)
    told = _Told(connection)
    # Sent to all processes at once it means "stop and save", which rank 0 does with the others still at their steps.
    signal.signal(signal.SIGTERM, signal.SIG_IGN if number else lambda *_: told.stop())
    order = connection.recv()
    threading.Thread(target=told.listen, name="listen", daemon=True).start()
    try:
        result = _work(number, order, told)
    except Exception as error:  # the boundary: what went wrong is said on the other side
        if isinstance(error, RankLost | Interrupted):  # nothing is wrong here
            sys.stderr.write(f"Rank {number}: {error.message}\n")
        else:
            traceback.print_exc()
        told.send("failed", _portable(error))
        return _EXIT_FAILED
    told.send("result", result)
    return 0


if __name__ == "__main__":
    code = main(*map(int, sys.argv[1:]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
