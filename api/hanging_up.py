"""A caller who hangs up: what is done for him alone ends."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

#: Seconds before anybody looks whether the caller is still there: most answers take less.
_SOON = 0.5


class WhileWanted:
    """What is awaited inside is cancelled once the caller hangs up.

    Args:
        receive: the request's, whose body is read by now.

    Raises:
        ClientDisconnect: in its place, at the block's end.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._listening: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_SOON, self._begin)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
        if self._listening is not None:
            self._listening.cancel()
        if self._gone and isinstance(error, asyncio.CancelledError) and self._task is not None:
            self._task.uncancel()
            raise ClientDisconnect from error

    def _begin(self) -> None:
        self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()
