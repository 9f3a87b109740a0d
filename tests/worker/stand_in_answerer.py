"""A process that helps, for tests of the worker: the real pipe and leash around parts that hold their own number.

The job's ``config["does"]["offer"]`` says what happens: ``trace`` (a file that gets a line for each part that is
begun), ``seconds`` of each, and ``hang`` (a file: who makes it computes its first part for ever).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker import trainer
from worker.answerer import PartPipe
from worker.trainer import bounded


def answer(workdir: Path, order: Mapping[str, Any], pipe: PartPipe) -> int:
    return bounded(pipe, lambda: parts(workdir, order, pipe))


def parts(workdir: Path, order: Mapping[str, Any], pipe: PartPipe) -> int:
    does = order["config"]["does"]["offer"]
    assert (workdir / "state" / "manifest.json").exists()
    while True:
        part = pipe.next_part()
        with Path(does["trace"]).open("a") as trace:
            trace.write(f"{order['worker']} {part.first}\n")
        if "hang" in does and made(Path(does["hang"])):
            while not pipe.should_stop():
                time.sleep(0.02)
            return trainer.EXIT_INTERRUPTED
        time.sleep(does.get("seconds", 0.02))
        (workdir / part.name).write_text(str(part.first))
        pipe.done(part)


def made(path: Path) -> bool:
    """Whether it was not there before."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    code = trainer.run(answer, PartPipe)
    sys.stdout.flush()
    os._exit(code)
