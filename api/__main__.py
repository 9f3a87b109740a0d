"""``python -m api``: the API under uvicorn, on an address or on a socket that is already bound."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence

import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from api.app import create_app
from api.limits import allow_many_connections, encode_in_one_thread, leave_lasting_objects_alone
from api.listening import configured
from api.logs import configure_logging
from limbeck.errors import InvalidInput, Unavailable
from models.engine import database_address
from models.scratch import make
from models.settings import Settings, complaint, refuse, unknown_variables
from models.storage import open_storage
from worker.queue import require_broker

#: Seconds that open requests get when the server is told to end.
_GRACE = 10
log = structlog.get_logger("limbeck.api")


class Server(uvicorn.Server):
    """Ends the streams of events before it waits for open connections; by themselves they end with their jobs."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.services.streams.close()
        await super().shutdown(sockets)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve Limbeck's HTTP API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a bound socket that was inherited; goes before --host and --port")
    options = parser.parse_args(arguments)
    try:
        settings = Settings()
        database_address(settings.database_url)
        require_broker(settings)
        open_storage(settings)
        assert settings.scratch_dir is not None  # Settings fills it in
        make(settings.scratch_dir)
    except ValidationError as error:
        return refuse(complaint(error))
    except InvalidInput as error:
        return refuse(error.message)
    except Unavailable as error:
        sys.stderr.write(f"limbeck: {error.message}\n")
        return 1
    configure_logging(settings)
    for line in unknown_variables(os.environ):
        log.warning(line)
    allow_many_connections()
    encode_in_one_thread()
    app = create_app(settings)
    leave_lasting_objects_alone()
    server = Server(configured(app, host=options.host, port=options.port, grace=_GRACE), app)
    # uvicorn raises the signal that ended it once more when all is closed; being told to end is no failure.
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, lambda *_: sys.exit(0))
    # uvicorn's own ``fd`` takes every socket for a UNIX one.
    server.run(sockets=None if options.fd is None else [socket.socket(fileno=options.fd)])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
