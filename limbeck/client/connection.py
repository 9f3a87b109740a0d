"""One HTTP connection pool: which calls are made again, and what an answer that is no success becomes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from limbeck import errors
from limbeck.errors import LimbeckError, Problem

_AWAY = frozenset({429, 502, 503, 504})
#: Seconds. A server that names a longer ``Retry-After`` is not waited for.
_LONGEST_PAUSE = 5.0
_BY_STATUS: Mapping[int, type[LimbeckError]] = {
    400: errors.InvalidInput,
    404: errors.NotFound,
    409: errors.Conflict,
    412: errors.Conflict,
    413: errors.TooLarge,
    415: errors.InvalidInput,
    422: errors.InvalidInput,
    **dict.fromkeys(_AWAY, errors.Unavailable),
}


class Connection:
    """Speaks to one server.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``.
        timeout: seconds that the server may stay silent.
        retries: how often a call that may be made twice is made again after a network error, 429, 502, 503 or 504.
        backoff: seconds before the first of them; doubled each time. A ``Retry-After`` goes before it.
        transport: replaces the network, for tests.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float,
        retries: int,
        backoff: float,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.retries = retries
        self.backoff = backoff
        try:
            self._http = httpx.Client(
                base_url=self.base_url, timeout=timeout, transport=transport, follow_redirects=True
            )
        except httpx.InvalidURL as error:
            raise errors.InvalidInput(f"{base_url!r} is not the URL of a server: {error}") from error

    def close(self) -> None:
        self._http.close()

    def json(self, method: str, path: str, *, repeatable: bool = True, **options: Any) -> Any:
        """:meth:`call`, and its JSON."""
        response = self.call(method, path, repeatable=repeatable, **options)
        try:
            return response.json()
        except ValueError as error:
            kind = response.headers.get("content-type", "nothing")
            raise LimbeckError(
                f"{self.base_url}{path} answered with {kind}, not JSON. Is it a Limbeck server?"
            ) from error

    def call(self, method: str, path: str, *, repeatable: bool = True, **options: Any) -> httpx.Response:
        """Make a call and give its answer, read whole. ``repeatable``: the call may reach the server twice.

        Raises:
            LimbeckError: the subclass that the server's problem names.
            Unavailable: no server there, or it stayed away over all retries.
        """
        times = self.retries if repeatable else 0
        for turn in range(times + 1):
            wait = None
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if turn == times or isinstance(error, httpx.UnsupportedProtocol):
                    raise self._unreachable(error) from error
            else:
                wait = _retry_after(response)
                if turn == times or response.status_code not in _AWAY or (wait or 0) > _LONGEST_PAUSE:
                    return _checked(response)
            self.pause(turn, wait)
        raise AssertionError("the last turn of the loop returns or raises")

    def pause(self, turn: int, seconds: float | None = None) -> None:
        """Wait before going on: ``seconds``, or twice as long as the turn before."""
        time.sleep(min(self.backoff * 2**turn if seconds is None else seconds, _LONGEST_PAUSE))

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str], **options: Any) -> Iterator[httpx.Response]:
        """GET with the body left to the caller to iterate; 416 is the caller's to read as well. Never repeated.

        Raises:
            LimbeckError: as :meth:`call`; ``Unavailable`` also when the connection breaks off inside the ``with``.
        """
        try:
            with self._http.stream("GET", path, headers=dict(headers), **options) as response:
                if response.status_code >= 400 and response.status_code != 416:
                    response.read()
                    _checked(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> LimbeckError:
        if isinstance(error, httpx.UnsupportedProtocol):
            return errors.InvalidInput(f"{self.base_url!r} is not the URL of a server; write http://host:port")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return errors.Unavailable(f"No Limbeck server answers at {self.base_url}. Start one with `limbeck up`.")
        if isinstance(error, httpx.TimeoutException):
            return errors.Unavailable(f"The server at {self.base_url} did not answer in time.")
        return errors.Unavailable(f"The connection to {self.base_url} broke off: {error}")


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code < 400:
        return response
    raise _problem(response)


def _problem(response: httpx.Response) -> LimbeckError:
    """The exception that an ``application/problem+json`` body stands for."""
    kind = _BY_STATUS.get(response.status_code, LimbeckError)
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return kind(f"The server answered {response.status_code} {response.reason_phrase}.")
    problems = [Problem(str(one.get("pointer", "")), str(one.get("detail", ""))) for one in body.get("errors") or ()]
    message = str(body.get("detail") or body.get("title") or f"The server answered {response.status_code}.")
    return _by_code().get(str(body.get("code")), kind)(message, problems)


def _by_code() -> Mapping[str, type[LimbeckError]]:
    return {kind.code: kind for kind in _tree(LimbeckError)}


def _tree(root: type[LimbeckError]) -> Iterator[type[LimbeckError]]:
    """Every class from ``root`` down; a parent comes after its children, so that it keeps a code that they inherit."""
    for child in root.__subclasses__():
        yield from _tree(child)
    yield root


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else None
