"""Whether requests can be served: what is asked for it, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import Depends, Request, Response

from api.schemas import CheckView, HealthView
from limbeck.errors import LimbeckError
from models.storage import Storage

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
        self._needed, self._wished, self._lasting = needed, wished or {}, lasting
        self._was_ready = False
        self.draining = False  #: told to end; nobody new should be sent here

    def look(self) -> HealthView:
        """Run the checks; ``status`` is ok, degraded or unavailable."""
        needed = {name: _check(probe) for name, probe in self._needed.items()}
        wished = {name: _check(probe) for name, probe in self._wished.items()}
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


def _check(probe: Probe) -> CheckView:
    try:
        return CheckView(ok=True, detail=probe())
    except LimbeckError as error:
        return CheckView(ok=False, detail=error.message)


async def _readiness(request: Request) -> Readiness:
    readiness: Readiness = request.app.state.readiness
    return readiness


Ready = Annotated[Readiness, Depends(_readiness)]
