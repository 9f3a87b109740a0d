"""The log of the server's processes: lines for people, or JSON where a machine reads them."""

from __future__ import annotations

import logging
import sys

import structlog

from models.settings import Settings

#: Libraries whose routine is not news here.
_QUIET = ("alembic", "kombu", "celery", "httpx")


def configure(settings: Settings) -> None:
    """Send everything that is logged to standard error, in the settings' format."""
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.log_format == "json":
        added: list[structlog.typing.Processor] = [
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ]
        formatter = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=added,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns that a folder has no host name.
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)
