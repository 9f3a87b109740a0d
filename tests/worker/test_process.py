"""The process of an attempt, seen by who watches it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from worker.process import TrainerProcess


@pytest.mark.timeout(60)
def test_a_process_that_does_not_listen_holds_nobody_up(tmp_path: Path) -> None:
    """Guards the watch over one that hangs: a full pipe would stop it, and nobody would end the process."""
    deaf = (sys.executable, "-c", "import time; time.sleep(600)")
    process = TrainerProcess(deaf, tmp_path, os.environ, lambda line: None, lambda text: None)
    try:
        for _ in range(4000):
            process.tell("lease", seconds=60.0)
        assert process.pump(0.01)
    finally:
        assert process.finish() == -9
