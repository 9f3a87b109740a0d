"""The process in which a worker computes parts of another job's teacher pass: ``python -m worker.answerer WORKDIR …``.

It starts, tells and ends as the one that trains does (``worker/trainer.py``), from an order of its own: ``config``,
``sources``, ``teacher``, ``key``, ``worker`` and ``lease_seconds``; ``WORKDIR/state`` is of the job's checkpoint. On
its input it also hears ``{"type": "part", "first": …, "end": …}``. It computes the parts one after the other, leaves
each as ``WORKDIR/{first}-{end}.safetensors``, and says so in the same words.
"""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from limbeck.config import DistillConfig
from limbeck.errors import Interrupted
from limbeck.offer import Part
from worker import trainer
from worker.trainer import Pipe, bounded

_WATCH_SECONDS = 0.2


class PartPipe(Pipe):
    """Hears of parts as well."""

    oom_score = 1000  # a job's own process is not to end for want of what its help takes

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._parts: SimpleQueue[Part] = SimpleQueue()

    def hear(self, order: Mapping[str, Any]) -> None:
        """A part that is to be computed, or what every pipe hears."""
        if order["type"] == "part":
            self._parts.put(Part(order["first"], order["end"]))
        else:
            super().hear(order)

    def next_part(self) -> Part:
        """Wait for it.

        Raises:
            Interrupted: there is none any more.
        """
        while not self.should_stop():
            try:
                return self._parts.get(timeout=_WATCH_SECONDS)
            except queue.Empty:
                continue
        raise Interrupted("No more parts are wanted.")

    def done(self, part: Part) -> None:
        self.send("part", first=part.first, end=part.end)


def answer(workdir: Path, order: Mapping[str, Any], pipe: PartPipe) -> int:
    """Compute parts until there are none; the exit code."""
    return bounded(pipe, lambda: _answer(workdir, order, pipe))


def _answer(workdir: Path, order: Mapping[str, Any], pipe: PartPipe) -> int:
    from limbeck.answering import Answerer
    from limbeck.callbacks import Callbacks

    class Silent(Callbacks):
        """What the job's own process tells is not told again."""

        def should_stop(self) -> bool:
            return pipe.should_stop()

    sources = {reference: Path(folder) for reference, folder in order["sources"].items()}
    config = DistillConfig.parse(order["config"], stored=True)
    answerer = Answerer(config, workdir, Silent(), sources, order["teacher"], order["key"])
    while True:
        part = pipe.next_part()
        answerer.compute(part, workdir / part.name, order["worker"])
        pipe.done(part)


if __name__ == "__main__":
    code = trainer.run(answer, PartPipe)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
