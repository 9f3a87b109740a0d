"""Whether the service lives, whether it can work, and its numbers."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from api import examples
from api.deps import House, Services
from api.openapi import answers
from api.schemas import CheckView, HealthView
from limbeck.errors import LimbeckError

router = APIRouter(tags=["service"])


@router.get("/healthz", summary="Whether the process lives", responses=answers(ok=(HealthView, examples.HEALTHY)))
async def live() -> HealthView:
    """Asks nothing of anybody: restart the process when this does not answer."""
    return HealthView(status="ok", checks={})


@router.get(
    "/readyz",
    summary="Whether requests can be served",
    response_model=HealthView,
    responses=answers(503, ok=(HealthView, examples.READY)),
)
def ready(house: House) -> Response:
    """200 when the database and the storage answer, else 503.

    A broker that is away makes the status `degraded` and leaves it at 200: jobs are taken all the same, and workers
    find them when they look for themselves.
    """
    needed = {
        "database": _check(house.database.ping),
        "storage": _check(lambda: _storage_answers(house)),
    }
    fault = house.bell.fault
    broker = CheckView(ok=fault is None, detail=f"does not take bells: {fault}" if fault else "no bell was refused")
    well = all(check.ok for check in needed.values())
    status = ("ok" if broker.ok else "degraded") if well else "unavailable"
    view = HealthView.model_validate({"status": status, "checks": needed | {"broker": broker}})
    return Response(view.model_dump_json(), 200 if well else 503, media_type="application/json")


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"example": 'limbeck_jobs{status="running"} 1.0\n'}}}},
)
def metrics(house: House) -> Response:
    """Jobs by status, requests and their latency by route, open streams of events."""
    return Response(house.telemetry.render(house.streams.open), media_type="text/plain; version=0.0.4; charset=utf-8")


def _check(probe: Callable[[], None]) -> CheckView:
    try:
        probe()
    except LimbeckError as error:
        return CheckView(ok=False, detail=error.message)
    return CheckView(ok=True, detail="answers")


def _storage_answers(house: Services) -> None:
    house.storage.exists("ready/probe")  # whether it is there does not matter, only that somebody answers
