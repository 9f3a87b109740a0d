"""The process by which a worker lends its host to another one's training: ``python -m worker.lent WORKDIR …``.

It starts, tells and ends as the one that trains does (``worker/trainer.py``), from an order of its own: ``sources``,
``worker`` and ``lease_seconds``. On its input it also hears ``{"type": "invitation", …}``, and on the pipe it says
``{"type": "joined"}``. Its children are the training's ranks; all else goes between it and the host that leads.
"""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from limbeck.errors import Interrupted
from limbeck.hosts import Invitation
from limbeck.lending import lend
from worker import trainer
from worker.trainer import Pipe, bounded

_WATCH_SECONDS = 0.2


class LentPipe(Pipe):
    """Hears of the invitation as well: a secret that is written to no disk."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._invitations: SimpleQueue[Invitation] = SimpleQueue()

    def hear(self, order: Mapping[str, Any]) -> None:
        """The invitation, or what every pipe hears."""
        if order["type"] == "invitation":
            self._invitations.put(Invitation(**order["invitation"]))
        else:
            super().hear(order)

    def invitation(self) -> Invitation:
        """Wait for it.

        Raises:
            Interrupted: this process is to end.
        """
        while not self.should_stop():
            try:
                return self._invitations.get(timeout=_WATCH_SECONDS)
            except queue.Empty:
                continue
        raise Interrupted("The host is not lent any more.")


def work(workdir: Path, order: Mapping[str, Any], pipe: LentPipe) -> int:
    """Lend the host until it is not wanted any more; the exit code."""
    return bounded(pipe, lambda: _work(workdir, order, pipe))


def _work(workdir: Path, order: Mapping[str, Any], pipe: LentPipe) -> int:
    sources = {reference: Path(folder) for reference, folder in order["sources"].items()}
    lend(pipe.invitation(), order["worker"], workdir, sources, pipe.should_stop, lambda: pipe.send("joined"))
    return 0


if __name__ == "__main__":
    code = trainer.run(work, LentPipe)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
