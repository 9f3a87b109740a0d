"""``python -m api.serve``: one process of ``limbeck serve``, on an address or on a socket that is already bound."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence

import structlog
from pydantic import ValidationError
from sqlalchemy import make_url

from api.limits import allow_many_connections, encode_in_one_thread, leave_lasting_objects_alone
from api.logs import configure_logging
from api.serve.app import create_app
from api.serve.folder import FolderShelf
from api.serve.server import server
from limbeck.errors import Conflict, LimbeckError
from models.engine import absent_file
from models.providers import require_providers
from models.scratch import make
from models.settings import Settings, complaint, refuse, unknown_variables
from models.storage import require_storage

log = structlog.get_logger("limbeck.serve")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="limbeck serve", description="Answer with students, and nothing else.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a bound socket that was inherited; goes before --host and --port")
    parser.add_argument("--check", action="store_true", help="tell whether it could start, and end")
    options = parser.parse_args(arguments)
    try:
        settings = Settings()
        configure_logging(settings)
        said = check(settings)
    except ValidationError as error:
        return refuse(complaint(error))
    except LimbeckError as error:
        return refuse(error.message)
    if options.check:
        return 0
    allow_many_connections()
    encode_in_one_thread()
    service = create_app(settings)
    leave_lasting_objects_alone()
    running = server(service, host=options.host, port=options.port, drain=settings.serve_drain_seconds)
    for line in unknown_variables(os.environ):
        log.warning(line)
    log.info(said)
    # uvicorn raises the signal that ended it once more when all is closed; being told to end is no failure.
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, lambda *_: sys.exit(0))
    # uvicorn's own ``fd`` takes every socket for a UNIX one.
    running.run(sockets=None if options.fd is None else [socket.socket(fileno=options.fd)])
    return 0 if running.started else 1


def check(settings: Settings) -> str:
    """What it will answer with, in one line.

    Raises:
        InvalidInput: the folder has no student; or a provider that the settings name is not installed.
        Conflict: the embedded database is not there; asking for it would make an empty one.
        Unavailable: the folder to work in cannot be used.
    """
    require_providers(settings)
    if settings.serve_folder is None:
        require_storage(settings)
    if settings.serve_folder is not None:
        return f"students in {settings.serve_folder}: {', '.join(FolderShelf(settings.serve_folder).names())}"
    absent = absent_file(settings.database_url)
    if absent is not None:
        raise Conflict(
            f"There is no database {absent}. Name the folder of a `limbeck up` with --data-dir, or one with "
            "students with --local; in production set the LIMBECK_… variables of the API."
        )
    assert settings.scratch_dir is not None  # Settings fills it in
    make(settings.scratch_dir)
    return f"students of the database {make_url(settings.database_url).render_as_string(hide_password=True)}"


if __name__ == "__main__":
    sys.exit(main())
