"""How the servers listen: what is the same for the API and for ``limbeck serve``."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

#: Seconds that a connection may be idle: more than the usual minute of load balancers and clients. Where the server
#: ends it first, a request that is just on its way into it is lost.
_KEPT_SECONDS = 75


def configured(app: FastAPI, *, host: str, port: int, grace: int) -> uvicorn.Config:
    """
    Args:
        grace: seconds that open requests get when the server is told to end.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,  # api/access.py writes a shorter one, with request ids
        log_config=None,
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=_KEPT_SECONDS,
        server_header=False,
    )
