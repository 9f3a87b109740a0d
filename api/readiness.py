"""Whether requests can be served: what is asked for it, and what follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Annotated

from fastapi import Depends, Request, Response

from api.schemas import CheckView, HealthView
from limbeck.errors import LimbeckError
from models.storage import Storage

#: What takes longer does not answer: who asks, every few seconds, waits for no more than this.
_PATIENCE_SECONDS = 2.0

Probe = Callable[[], str]
"""Says in a few words how things stand, or raises a LimbeckError."""


class Readiness:
    """Checks by name.

    Args:
        needed: the service cannot work while one of them fails.
        wished: it works without them, ``degraded``.
        lasting: what has been ready once stays so, ``degraded``, when a needed check fails later: a server that answers
            with what it has loaded is better than none.
    """

    def __init__(
        self, needed: Mapping[str, Probe], wished: Mapping[str, Probe] | None = None, *, lasting: bool = False
    ) -> None:
        self._needed = {name: _Check(probe) for name, probe in needed.items()}
        self._wished = {name: _Check(probe) for name, probe in (wished or {}).items()}
        self._lasting = lasting
        self._was_ready = False
        self.draining = False  #: told to end; nobody new should be sent here

    def look(self) -> HealthView:
        """Run the checks, all at once; ``status`` is ok, degraded or unavailable. It takes two seconds at most."""
        begun = [check.begin() for check in (*self._needed.values(), *self._wished.values())]
        until = time.monotonic() + _PATIENCE_SECONDS
        found = iter([_answer(one, until) for one in begun])
        needed, wished = ({name: next(found) for name in checks} for checks in (self._needed, self._wished))
        well = all(check.ok for check in needed.values())
        usable = well or (self._lasting and self._was_ready)
        self._was_ready = self._was_ready or well
        status = "ok" if well and all(check.ok for check in wished.values()) else "degraded"
        checks = needed | wished
        if self.draining:
            usable, checks = False, checks | {"draining": CheckView(ok=False, detail="this process is going down")}
        return HealthView.model_validate({"status": status if usable else "unavailable", "checks": checks})

    def answer(self) -> Response:
        """200 or 503, with all the checks."""
        view = self.look()
        status = 503 if view.status == "unavailable" else 200
        return Response(view.model_dump_json(), status, media_type="application/json")


def answers(probe: Callable[[], object]) -> Probe:
    """A probe of what only has to answer."""

    def ask() -> str:
        probe()
        return "answers"

    return ask


def storage_probe(storage: Callable[[], Storage]) -> Probe:
    """A probe of the storage that there is when it is asked."""
    return answers(lambda: storage().ping())


class _Check:
    """A probe, and the thread that asks it: one at a time, which may be asking still what hangs. Else those of who
    looks every few seconds would all be stuck in it, and with them every thread that answers requests."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._lock = threading.Lock()
        self._asked: Future[CheckView] | None = None
        self._began = 0.0

    def begin(self) -> tuple[Future[CheckView], float]:
        """What it is about to say, and since when it is asked, on the monotonic clock."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked, self._began = Future(), time.monotonic()
                threading.Thread(target=self._ask, args=(self._asked,), name="limbeck-check", daemon=True).start()
            return self._asked, self._began

    def _ask(self, asked: Future[CheckView]) -> None:
        try:
            asked.set_result(CheckView(ok=True, detail=self._probe()))
        except LimbeckError as error:
            asked.set_result(CheckView(ok=False, detail=error.message))
        except BaseException as error:  # it is raised where somebody looks
            asked.set_exception(error)


def _answer(begun: tuple[Future[CheckView], float], until: float) -> CheckView:
    """What was said by then; of what hangs since an earlier look at once that it does."""
    asked, began = begun
    now = time.monotonic()
    try:
        return asked.result(max(0.0, min(until, began + _PATIENCE_SECONDS) - now))
    except TimeoutError:
        return CheckView(ok=False, detail=f"has not answered for {time.monotonic() - began:.0f} s")


async def _readiness(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


Ready = Annotated[Readiness, Depends(_readiness)]
