"""Sending stored bytes: strong ETags, conditional requests, one range at a time (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

#: Longer numbers are not understood: no file has so many bytes.
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_TAG = re.compile(r'(?:W/)?("[^"]*")')


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that do not change."""

    size: int
    sha256: str
    filename: str
    media_type: str
    #: Gives the bytes from ``start`` up to, and without, ``end``. Called only when they are wanted.
    read: Callable[[int, int], Iterator[bytes]]

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


def matches(header: str | None, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names ``etag`` (weak comparison)."""
    if header is None:
        return False
    return header.strip() == "*" or etag.removeprefix("W/") in _TAG.findall(header)


def send(request: Request, content: Content) -> Response:
    """200, 206, 304, or for HEAD the headers alone.

    Several ranges in one request, units other than bytes and malformed ranges get the whole, as RFC 9110 allows.

    Raises:
        HTTPException: 416 for a range that begins behind the end.
    """
    headers = {"ETag": content.etag, "Accept-Ranges": "bytes"}
    if matches(request.headers.get("if-none-match"), content.etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{_plain(content.filename)}"'
    wanted = _wanted(request, content)
    start, end = wanted or (0, content.size)
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(headers=headers, media_type=content.media_type)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    status = 206 if wanted else 200
    return StreamingResponse(content.read(start, end), status, headers, content.media_type)


def _wanted(request: Request, content: Content) -> tuple[int, int] | None:
    """The range to send as (start, end), or None for the whole."""
    headers: Mapping[str, str] = request.headers
    found = _RANGE.fullmatch(headers.get("range", "").strip())
    if request.method != "GET" or found is None or headers.get("if-range", content.etag) != content.etag:
        return None
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last) + 1 if last else content.size, content.size)
        if last and int(last) < int(first):
            return None
    elif last:
        start, end = max(content.size - int(last), 0), content.size
    else:
        return None
    if start >= end:
        raise HTTPException(
            416,
            f"The range begins behind the end: there are {content.size} bytes.",
            headers={"Content-Range": f"bytes */{content.size}"},
        )
    return start, end


def _plain(filename: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+ -]", "_", filename)
