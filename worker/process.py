"""The trainer as its worker sees it: a process group, a pipe of JSON lines, a log, and an input to talk to it."""

from __future__ import annotations

import codecs
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_CHUNK = 65_536
#: A line longer than this is not one of ours.
_LONGEST_LINE = 64 * 1024 * 1024
_DRAIN_SECONDS = 2.0


class TrainerProcess:
    """One attempt's process, in a session and group of its own.

    It has to be started, pumped and ended by one and the same thread: the child's death signal is tied to the thread
    that started it.

    Args:
        command: the program and its first arguments; the work folder, ``--pipe`` and ``--parent`` are added.
        on_line: called with each JSON object of the pipe.
        on_log: called with what the process prints.
    """

    def __init__(
        self,
        command: Sequence[str],
        workdir: Path,
        environment: Mapping[str, str],
        on_line: Callable[[dict[str, Any]], None],
        on_log: Callable[[str], None],
    ) -> None:
        self._on_line = on_line
        self._on_log = on_log
        self._partial = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        lines, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, str(workdir), "--pipe", str(theirs), "--parent", str(os.getpid())],
                cwd=workdir,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs],
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(lines)
            raise
        finally:
            os.close(theirs)
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        # A process that does not listen must not hold up who watches it; a line fits into a pipe whole or not at all.
        os.set_blocking(self._process.stdin.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(lines, selectors.EVENT_READ, self._take_lines)
        self._selector.register(self._process.stdout.fileno(), selectors.EVENT_READ, self._take_log)
        self._lines = lines

    @property
    def pid(self) -> int:
        return self._process.pid

    def pump(self, seconds: float) -> bool:
        """Pass on what the process says, for at most so long; whether it still runs."""
        if self._selector.get_map():
            for key, _ in self._selector.select(seconds):
                self._read(key.fd, key.data)
        else:  # both streams are closed, the process may still be at work
            time.sleep(min(seconds, 0.05))
        # Not reaped yet: until then nobody else can get its number, which is its group's too.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def tell(self, kind: str, **facts: Any) -> None:
        """Send a line; a process that is about to end may not hear it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps({"type": kind, **facts}).encode() + b"\n")

    def ask_to_stop(self) -> None:
        self.tell("stop")
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End the whole group at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def finish(self) -> int:
        """End the process and what it left running, pass on its last words, free everything; its exit code."""
        self.kill()
        code = self._process.wait()
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._selector.get_map() and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.1):
                self._read(key.fd, key.data)
        self._selector.close()
        os.close(self._lines)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        return code

    def _read(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        content = os.read(descriptor, _CHUNK)
        if content:
            take(content)
        else:
            self._selector.unregister(descriptor)

    def _take_log(self, content: bytes) -> None:
        self._on_log(self._decoder.decode(content))

    def _take_lines(self, content: bytes) -> None:
        *whole, self._partial = (self._partial + content).split(b"\n")
        if len(self._partial) > _LONGEST_LINE:
            self._partial = b""
        for line in whole:
            try:
                document = json.loads(line)
            except ValueError:
                document = None
            if isinstance(document, dict) and "type" in document:
                self._on_line(document)
            else:
                self._on_log(f"[a line that is not JSON came on the pipe: {line[:200]!r}]\n")
