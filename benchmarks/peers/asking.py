"""Give orders to a process that trains, and read what it measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.venv import PeersUnavailable, ensure_venv
from benchmarks.report import ROOT

_INSIDE = Path(__file__).parent / "inside" / "__main__.py"


class OrderFailed(PeersUnavailable):
    """A measurement's process failed; its last words are on stderr."""


class Worker:
    """A process that does one order at a time (``benchmarks/peers/forking.py``)."""

    def __init__(self, command: Sequence[str], threads: int | None = None) -> None:
        chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **quiet, **chosen, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )

    @classmethod
    def of_peers(cls, threads: int | None = None) -> Self:
        """The other trainers, in their own environment."""
        return cls([str(ensure_venv()), "-W", "ignore", str(_INSIDE)], threads)

    @classmethod
    def of_limbeck(cls, threads: int | None = None) -> Self:
        """Limbeck's engine, in this environment."""
        return cls([sys.executable, "-m", "benchmarks.training.ours"], threads)

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """What the order's training measured.

        Raises:
            OrderFailed: it ended otherwise.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            self._process.stdin.write(json.dumps({**order, "result": str(result)}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
            if answer != "0":
                raise OrderFailed(f"{order.get('trainer', 'limbeck')} ended with {answer or 'no answer'}")
            found: dict[str, Any] = json.loads(result.read_text())
            return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        if kind is not None:  # a training may be under way in a fork of it
            os.killpg(self._process.pid, signal.SIGTERM)
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
