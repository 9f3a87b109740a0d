"""What a job tells while it runs and after: events, metrics, log, attempts, scorecard."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from api import examples, pages
from api.deps import House, Services
from api.job_schemas import AttemptView, EventView, MetricsView
from api.openapi import answers
from api.schemas import Listing
from api.scorecard_example import SCORECARD
from limbeck.errors import NotFound, NotYet
from limbeck.scorecard import Scorecard
from models.job import Job
from models.repository import jobs, telemetry

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], dependencies=pages.STRICT)

JobId = Annotated[str, Path(description="The job's id.")]

_EVENT_STREAM = {"text/event-stream": {"schema": {"type": "string"}, "example": examples.EVENT_STREAM}}


def _event_answers() -> dict[int | str, dict[str, object]]:
    found = answers(404, 503, ok=(Listing[EventView], examples.listing(examples.EVENT)))
    found[200]["content"] |= _EVENT_STREAM
    return found | {204: {"description": "To a stream that asks behind the last event of a job that has ended."}}


@router.get("/events", summary="What has happened", response_model=Listing[EventView], responses=_event_answers())
async def job_events(
    request: Request,
    house: House,
    job_id: JobId,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Only events with a higher number.")] = 0,
    cursor: Annotated[int, Query(ge=0, lt=2**63, description="The `next_cursor` of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most; JSON only.")] = 100,
    last_event_id: Annotated[
        str | None, Header(description="Where a stream goes on; browsers send it by themselves.", max_length=100)
    ] = None,
) -> Response:
    """A page as JSON or, with `Accept: text/event-stream`, everything as it happens until the job has ended.

    In a stream `id` is the event's number, `event` its kind, and `data` the event as JSON. Between them come events of
    kind `progress`, which have no id and no number: they tell how things stand. A comment comes every 15 seconds.
    """
    after = max(after, cursor)
    if "text/event-stream" not in request.headers.get("accept", ""):
        return await to_thread.run_sync(_page, house, job_id, after, limit)
    if last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 19:
        after = int(last_event_id)
    job = await to_thread.run_sync(_job, house, job_id)
    if job.status.terminal and after >= job.last_event:
        return Response(status_code=204)  # to an EventSource this means: do not come back
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    return StreamingResponse(house.streams.watch(job_id, after), headers=headers, media_type="text/event-stream")


@router.get(
    "/metrics",
    summary="Series of numbers",
    responses=answers(404, 422, 503, ok=(MetricsView, examples.METRICS)),
)
def job_metrics(
    house: House,
    job_id: JobId,
    max_points: Annotated[int, Query(ge=4, le=10_000, description="Longer series are thinned; peaks stay.")] = 1000,
) -> MetricsView:
    """Losses and whatever else the methods report, by step of the whole job."""
    with house.database.reading() as session:
        jobs.get(session, job_id)
        series = telemetry.metrics(session, job_id, max_points)
    return MetricsView.model_validate({"series": series})


@router.get(
    "/logs",
    summary="What the job's processes printed",
    response_class=Response,
    responses=answers(404, 503) | {200: {"content": {"text/plain": {"example": examples.LOG}}}},
)
def job_log(
    house: House,
    job_id: JobId,
    tail_bytes: Annotated[int | None, Query(ge=1, description="Only the last lines, at most so many bytes.")] = None,
) -> Response:
    """Plain text, of all attempts in their order."""
    with house.database.reading() as session:
        jobs.get(session, job_id)
        # Read before it is sent, so that a slow reader holds no connection; LIMBECK_MAX_LOG_BYTES bounds it.
        text = "".join(telemetry.read_log(session, job_id)).encode()
    return Response(_tail(text, tail_bytes), media_type="text/plain; charset=utf-8")


@router.get(
    "/attempts",
    summary="Who ran it, and how that ended",
    responses=answers(404, 503, ok=(Listing[AttemptView], examples.listing(examples.ATTEMPT))),
)
def job_attempts(house: House, job_id: JobId) -> Listing[AttemptView]:
    """One entry per attempt, in order."""
    with house.database.reading() as session:
        jobs.get(session, job_id)
        rows = telemetry.attempts(session, job_id)
    return Listing[AttemptView](data=[AttemptView.of(row) for row in rows])


@router.get(
    "/scorecard",
    summary="Teacher, student and baseline side by side",
    response_model=Scorecard,
    responses=answers(404, 503, ok=(Scorecard, SCORECARD)),
)
def job_scorecard(house: House, job_id: JobId) -> Response:
    """404 with the code `not_yet` while the job has not come to it."""
    job = _job(house, job_id)
    if job.scorecard is None and job.status.terminal:
        raise NotFound(f"Job {job_id} has no scorecard: it is {job.status}.")
    if job.scorecard is None:
        raise NotYet(f"Job {job_id} has no scorecard yet: it is {job.status}.")
    return Response(Scorecard.model_validate(job.scorecard).model_dump_json(), media_type="application/json")


def _job(house: Services, job_id: str) -> Job:
    with house.database.reading() as session:
        return jobs.get(session, job_id)


def _page(house: Services, job_id: str, after: int, limit: int) -> Response:
    with house.database.reading() as session:
        jobs.get(session, job_id)
        rows = telemetry.events_after(session, job_id, after, limit + 1)
    views = [EventView.of(row) for row in rows[:limit]]
    more = len(rows) > limit
    page = Listing[EventView](data=views, has_more=more, next_cursor=str(views[-1].sequence) if more else None)
    return Response(page.model_dump_json(), media_type="application/json")


def _tail(text: bytes, size: int | None) -> bytes:
    """The last whole lines within ``size`` bytes, or the end of the last line where that alone is longer."""
    if size is None or len(text) <= size:
        return text
    end = text[-size:]
    if text[-size - 1 : -size] == b"\n":
        return end
    newline = end.find(b"\n")
    if 0 <= newline < len(end) - 1:
        return end[newline + 1 :]
    return end.decode(errors="ignore").encode()
