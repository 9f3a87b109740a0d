"""The outermost layer: request ids, the access log, request metrics, and the last resort for unexpected errors."""

from __future__ import annotations

import random
import re
import time
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import refusal, unexpected
from api.telemetry import Telemetry

log = structlog.get_logger("limbeck.api")

_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
#: Of a body that is not an upload.
MAX_BODY_BYTES = 1024**2
#: An image of the 10 MiB that are decoded takes a third more in base64.
MAX_IMAGE_BODY_BYTES = 14 * 1024**2
_ASKING = ("/predict", "/inference", "/infer")
#: Asked every few seconds by machines; they would drown the log.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


class Observed:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = scope["request_id"] = _request_id(headers)
        began, status = time.perf_counter(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        scope["body_limit"] = limit = BodyLimit(scope, headers, receive)
        try:
            await (refusal(scope, headers) or self._app)(scope, limit.receive, observed)
        except Exception:
            log.exception("request failed", request_id=request_id, method=scope["method"], path=_path(scope))
            if status:
                raise  # the answer has begun; only breaking the connection tells the caller that it is not whole
            await unexpected(Request(scope))(scope, receive, observed)
        finally:
            self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        self._telemetry.request(scope["method"], route_of(scope), status, seconds)
        write = log.debug if scope["path"] in _QUIET else log.info
        milliseconds = round(seconds * 1000, 1)
        write(f"{scope['method']} {_path(scope)} {status} {milliseconds} ms", request_id=scope["request_id"])


class BodyLimit:
    """Counts a request's body, so that no route reads more into memory than a JSON document may have, or, where
    students are asked, an image in base64."""

    def __init__(self, scope: Scope, headers: Headers, receive: Receive) -> None:
        self._limit = MAX_IMAGE_BODY_BYTES if scope["path"].endswith(_ASKING) else MAX_BODY_BYTES
        announced = headers.get("content-length", "")
        self._receive = receive
        self._announced = int(announced) if announced.isdecimal() else 0
        self._received = 0
        self._lifted = False

    def lift(self) -> None:
        """For a route that streams and counts by itself."""
        self._lifted = True

    def require_document(self) -> None:
        """For a route that found that no image is asked for.

        Raises:
            HTTPException: 413.
        """
        self._limit = MAX_BODY_BYTES
        self._check(self._received)

    async def receive(self) -> Message:
        """
        Raises:
            HTTPException: 413.
        """
        self._check(self._announced)
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._check(self._received)
        return message

    def _check(self, size: int) -> None:
        if size > self._limit and not self._lifted:
            raise HTTPException(413, f"The body of the request is larger than this route takes: {self._limit} bytes.")


def route_of(scope: Scope) -> str:
    """The route's template, so that ids do not become labels of metrics."""
    return getattr(scope.get("route"), "path_format", None) or "none"


def _path(scope: Scope) -> str:
    """For the log, in which a decoded end of a line would begin one that nobody wrote."""
    path: str = scope["path"]
    return path if path.isprintable() else quote(path)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    # Nobody has to be unable to guess it, and a question to the kernel (uuid4) would let go of the interpreter.
    return given if _REQUEST_ID.fullmatch(given) else f"req_{random.getrandbits(128):032x}"
