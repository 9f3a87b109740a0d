"""uvicorn as ``limbeck serve`` needs it: told to end, it leaves in an order that costs nobody a request."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import uvicorn
from fastapi import FastAPI

from api.listening import configured

#: Seconds that open requests get behind the drain.
_GRACE = 30
_TICK = 0.05


class Server(uvicorn.Server):
    """On SIGTERM it says that it is not ready and answers on, each connection once, until whoever distributes the
    requests has noticed; then it ends as uvicorn does. A second signal, or Ctrl-C, cuts that short.

    Args:
        service: its ``state.readiness`` is told.
        drain: seconds.
    """

    def __init__(self, config: uvicorn.Config, service: FastAPI, drain: float) -> None:
        super().__init__(config)
        self._service, self._drain = service, drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.state.readiness.draining = True
        until = time.monotonic() + self._drain
        while self._captured_signals == [signal.SIGTERM] and time.monotonic() < until:
            await asyncio.sleep(_TICK)
        await super().shutdown(sockets)


def server(service: FastAPI, *, host: str, port: int, drain: float) -> Server:
    """Not started yet."""
    return Server(configured(service, host=host, port=port, grace=_GRACE), service, drain)
