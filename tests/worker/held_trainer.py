"""The real trainer, held at the beginning of a stage until it is told to stop.

``HELD_STAGE`` names the stage; the file ``HELD_MARK`` appears when it is reached. The engine goes on from there, and
has to hear the stop by itself.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.callbacks import Stage
from worker import trainer
from worker.trainer import Pipe


class Held(Pipe):
    """The same pipe with another manner."""

    def __init__(self, pipe: Pipe) -> None:
        self.__dict__.update(pipe.__dict__)

    def on_stage(self, stage: Stage) -> None:
        super().on_stage(stage)
        if stage == os.environ["HELD_STAGE"]:
            Path(os.environ["HELD_MARK"]).touch()
            while not self.should_stop():
                threading.Event().wait(0.02)


def train(workdir: Path, order: Mapping[str, Any], pipe: Pipe) -> int:
    return trainer.train(workdir, order, Held(pipe))


if __name__ == "__main__":
    code = trainer.main(train=train)
    sys.stdout.flush()
    os._exit(code)
