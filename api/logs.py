"""Where the log of a server goes, and how it looks."""

from __future__ import annotations

import logging
import sys
import threading

import structlog

from models.settings import Settings


class Lines:
    """What structlog hands its lines to; one that cannot be written must not cost the answer that it tells of."""

    _lock = threading.Lock()

    def info(self, line: str) -> None:
        try:
            with self._lock:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
        except (OSError, ValueError):  # as logging's own handlers: the disk is full, or the stream is closed
            pass

    debug = warning = error = critical = info


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
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
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
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=lambda *_: Lines(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
