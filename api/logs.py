"""Where the log of a server goes, and how it looks."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import threading
from collections.abc import Sequence
from typing import ClassVar

import structlog

from models.settings import Settings

#: Without the frames' variables: among them are the callers' headers and texts.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


class Lines:
    """What structlog hands its lines to; one that cannot be written must not cost the answer that it tells of.

    Lines of the event loop's thread are written together at the end of its turn, in their order. At each write a thread
    lets go of the interpreter, and waits until those that compute answers give it back.
    """

    _lock = threading.Lock()
    _gathered: ClassVar[list[str]] = []
    _writing: ClassVar[asyncio.AbstractEventLoop | None] = None  #: that will write them at the end of its turn

    def info(self, line: str) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # another thread, or no loop yet
            self._write([line])
            return
        with self._lock:
            self._gathered.append(line)
            known, Lines._writing = Lines._writing is loop, loop
        if not known:
            loop.call_soon(self.flush)

    debug = warning = error = critical = info

    @classmethod
    def flush(cls) -> None:
        """Write what is gathered."""
        with cls._lock:
            lines, cls._gathered, cls._writing = cls._gathered, [], None
        cls._write(lines)

    @classmethod
    def _write(cls, lines: Sequence[str]) -> None:
        try:
            with cls._lock:
                sys.stderr.write("".join(f"{line}\n" for line in lines))
                sys.stderr.flush()
        except (OSError, ValueError):  # as logging's own handlers: the disk is full, or the stream is closed
            pass


def configure_logging(settings: Settings) -> None:
    """One line an event on stderr; JSON where the settings say so.

    The same from the standard library's loggers and from structlog's. The latter write their lines themselves, as
    there is one for each request: by way of the former it takes more than twice as long.
    """
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    as_json = settings.log_format == "json"
    last: list[structlog.types.Processor] = (
        [_TRACEBACKS, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its own set-up at each start
    atexit.register(Lines.flush)  # of a loop that has ended before the end of its turn
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=lambda *_: Lines(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
