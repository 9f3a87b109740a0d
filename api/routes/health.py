"""Whether the service lives, whether it can work, and its numbers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api import examples
from api.openapi import answers
from api.readiness import Ready
from api.schemas import HealthView
from api.telemetry import Telemetry

router = APIRouter(tags=["service"])


async def _telemetry(request: Request) -> Telemetry:
    telemetry: Telemetry = request.app.state.telemetry
    return telemetry


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
def ready(readiness: Ready) -> Response:
    """200 when the database and the storage answer, else 503.

    A broker that is away makes the status `degraded` and leaves it at 200: jobs are taken all the same, and workers
    find them when they look for themselves.
    """
    return readiness.answer()


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"example": 'limbeck_jobs{status="running"} 1.0\n'}}}},
)
def metrics(telemetry: Annotated[Telemetry, Depends(_telemetry)]) -> Response:
    """Requests and their latency by route, and by student while it is loaded; texts that wait; of the API also jobs by
    status, what waits and how long, connected workers, how attempts ended, and open streams of events."""
    return Response(telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


# What load balancers send, and `curl -I`.
router.head("/healthz", include_in_schema=False)(live)
router.head("/readyz", include_in_schema=False)(ready)
