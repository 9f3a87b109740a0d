"""Jobs: submit, look, and everything that may be asked of one."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from sqlalchemy.orm import Session

from api import examples, pages, preflight
from api.deps import House, Services
from api.errors import not_json
from api.job_schemas import DocumentOf, JobRequest, JobView, ValidationView
from api.openapi import answers
from api.places import place_of
from api.schemas import Listing
from api.transfer import matches
from limbeck.errors import InvalidConfig, InvalidInput, NotFound, Problem
from models.job import Job, JobStatus
from models.repository import catalogue, jobs, overview
from models.repository.crew import lacking
from models.repository.queue import require_room
from models.text import refuse_unstorable

router = APIRouter(prefix="/v1", tags=["jobs"], dependencies=pages.STRICT)
#: Its filters are read by hand.
listing = APIRouter(prefix="/v1", tags=["jobs"])

JobDocument = Annotated[Any, DocumentOf(JobRequest), Body(openapi_examples=examples.JOB_REQUESTS)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key with the same request answers the first job, however often it is sent.",
    ),
]


@router.post(
    "/jobs",
    status_code=202,
    summary="Submit a job",
    response_model=JobView,
    responses=answers(422, 429, 503, accepted=(JobView, examples.QUEUED)),
)
def submit_job(house: House, document: JobDocument, idempotency_key: IdempotencyKey = None) -> Response:
    """Check a distillation and put it into the queue. `Location` says where to look."""
    wanted = _parsed(document)
    with house.database.reading() as session:
        repeated = idempotency_key is not None and overview.knows_key(session, idempotency_key)
    if not repeated:
        preflight.require_possible(house, wanted.config())
    return _queued(
        house,
        lambda session: jobs.submit(
            session,
            name=wanted.name or _name(session, wanted),
            owner=wanted.owner,
            priority=wanted.priority,
            config=wanted.config().model_dump(mode="json"),
            method=wanted.method.type,
            labels=wanted.metadata,
            webhook_url=None,
            idempotency_key=idempotency_key,
            request_hash=_hash(document),
            gpus=wanted.resources.gpus,
            max_attempts=house.settings.max_attempts,
        ),
    )


@router.post(
    "/jobs:validate",
    summary="Check a job without submitting it",
    responses=answers(422, 503, ok=(ValidationView, examples.VALIDATION)),
)
def validate_job(house: House, document: JobDocument) -> ValidationView:
    """Everything that a submit checks, and for names from the hub also what the hub says of the teacher.

    When the hub does not answer within seconds, `notes` says so; the job may work all the same.
    """
    wanted = _parsed(document)
    facts, notes = preflight.examine(house, wanted.config())
    config = wanted.config().model_dump(mode="json")
    with house.database.reading() as session:
        missing = lacking(session, wanted.resources.gpus, config)
    notes += [f"The job would wait for {missing}."] if missing else []
    return ValidationView(config=config, teacher=facts, notes=notes)


@listing.get(
    "/jobs",
    summary="List jobs, newest first",
    response_model=Listing[JobView],
    responses=answers(422, 503, ok=(Listing[JobView], examples.listing(examples.JOB, examples.ENDED))),
)
def list_jobs(
    request: Request,
    house: House,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this status.")] = None,
    method: Annotated[str | None, Query(description="Only jobs with this method, e.g. `kd`.", max_length=64)] = None,
    limit: pages.Limit = 20,
    cursor: pages.Cursor = None,
) -> Response:
    """`metadata[key]=value` keeps the jobs that carry this; several keys have to match together."""
    labels = _label_filters(request)
    with house.database.reading() as session:
        page = jobs.list_page(session, limit=limit, cursor=cursor, status=status, method=method, labels=labels)
        return _json(pages.listing(page, lambda job: JobView.of(job, house.places.of(session, job))))


@router.get(
    "/jobs/{job_id}",
    summary="Look at a job",
    response_model=JobView,
    responses=answers(404, 503, ok=(JobView, examples.JOB)) | {304: {"description": "It has not changed."}},
)
def get_job(request: Request, house: House, job_id: str) -> Response:
    """Send the `ETag` back as `If-None-Match` to be told only of changes. The queue's order may be a moment old."""
    with house.database.reading() as session:
        job = jobs.get(session, job_id)
        place = house.places.of(session, job)
    estimate = "-".join(map(str, (place and place.starts_in) or ()))
    if place and place.waits_for:
        estimate = f"{zlib.crc32(place.waits_for.encode()):08x}"
    etag = f'"{job.version}-{place.position if place else 0}-{estimate}"'
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers={"ETag": etag})
    return _json(JobView.of(job, place), headers={"ETag": etag})


@router.delete(
    "/jobs/{job_id}", status_code=204, summary="Delete a job that has ended", responses=answers(404, 409, 503)
)
def delete_job(
    house: House,
    job_id: str,
    keep_models: Annotated[bool, Query(description="Keep the student and the baseline.")] = False,
) -> None:
    """Its events, metrics, log, checkpoints and models go with it. 409 also while another job that has not ended names
    one of these models, or an alias means one, unless they are kept."""
    with house.database.session() as session:
        models = [] if keep_models else [model.id for model in catalogue.models_of_job(session, job_id)]
        keys = jobs.delete(session, job_id, keep_models=keep_models)
    house.discard(keys)
    for model_id in models:
        house.forget_model(model_id)


_CHANGED = answers(404, 409, 503, ok=(JobView, examples.ENDED), accepted=(JobView, examples.CANCELLING))


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", response_model=JobView, responses=_CHANGED)
def cancel_job(house: House, job_id: str) -> Response:
    """200 when it is cancelled, 202 while its worker is being told to stop; one that is dead is not waited for. Asking
    again changes nothing."""
    return _change(house, job_id, jobs.request_cancel)


@router.post("/jobs/{job_id}/pause", summary="Pause a job", response_model=JobView, responses=_CHANGED)
def pause_job(house: House, job_id: str) -> Response:
    """200 when it is paused, 202 while its worker writes a checkpoint. It keeps no worker waiting."""
    return _change(house, job_id, jobs.request_pause)


@router.post(
    "/jobs/{job_id}/resume",
    summary="Resume a paused or failed job",
    response_model=JobView,
    responses=_CHANGED | answers(422, 429),
)
def resume_job(house: House, job_id: str) -> Response:
    """Back into the queue; it goes on from its checkpoint.

    A job that failed by a fault that may pass (`error.retryable`, such as a full disk) has kept its checkpoint, if it
    had written one: it is taken too, and its attempts are counted anew. 429 where the queue is full: the job stays as
    it is, with its checkpoint.
    """
    most = house.settings.max_queued_jobs
    return _change(house, job_id, partial(jobs.resume, most_waiting=most))


@router.post(
    "/jobs/{job_id}/rerun",
    status_code=202,
    summary="Repeat a job that has ended",
    response_model=JobView,
    responses=answers(404, 409, 422, 429, 503, accepted=(JobView, examples.QUEUED)),
)
def rerun_job(house: House, job_id: str, idempotency_key: IdempotencyKey = None) -> Response:
    """A new job with the same configuration, seed, data and revisions."""
    return _queued(house, lambda session: jobs.rerun(session, job_id, idempotency_key=idempotency_key))


def _queued(house: Services, create: Callable[[Session], tuple[Job, bool]]) -> Response:
    """The answer about a job that ``create`` puts into the queue, if there is room, or has put there before."""
    with house.database.session() as session:
        job, created = create(session)
        if created:
            require_room(session, house.settings.max_queued_jobs)
        view = _view(session, job)
    if created:
        house.bell.ring()
    headers = {"Location": f"/v1/jobs/{view.id}"} | ({} if created else {"Idempotency-Replayed": "true"})
    return _json(view, 202, headers)


def _change(house: Services, job_id: str, change: Callable[[Session, str], Job]) -> Response:
    with house.database.session() as session:
        job = change(session, job_id)
        view = _view(session, job)
    if job.status is JobStatus.QUEUED:
        house.bell.ring()
    under_way = job.status in (JobStatus.CANCELLING, JobStatus.PAUSING, JobStatus.QUEUED)
    return _json(view, 202 if under_way else 200)


def _view(session: Session, job: Job) -> JobView:
    return JobView.of(job, place_of(session, job))


def _json(view: JobView | Listing[JobView], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Straight to bytes: FastAPI would validate the model once more in the thread pool.
    return Response(view.model_dump_json(), status, headers, media_type="application/json")


def _parsed(document: Any) -> JobRequest:
    if isinstance(document, bytes):
        raise not_json()
    if not isinstance(document, dict):
        detail = f"found {type(document).__name__}; allowed: an object with teacher, dataset and method"
        raise InvalidConfig(f"The body is not valid: {detail}.", [Problem("", detail)])
    refuse_unstorable(document)  # first, so that its pointers lead into what was sent
    return JobRequest.parse(document)


def _name(session: Session, wanted: JobRequest) -> str:
    teacher, dataset = (_called(session, source) for source in (wanted.teacher.source, wanted.dataset.source))
    return f"{wanted.method.type}: {teacher} on {dataset}"[:200]


def _called(session: Session, source: str) -> str:
    """What people call a source: an upload by its name, which an id is not."""
    kind, _, name = source.rpartition(":")
    with suppress(NotFound):  # deleted a moment ago: the submit itself refuses that
        if kind == "dataset":
            return catalogue.get_dataset(session, name).name
        if kind == "model":
            return catalogue.get_model(session, name).name
    return name.split("/")[-1]


def _hash(document: Any) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _label_filters(request: Request) -> dict[str, str]:
    labels: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if not (name.startswith("metadata[") and name.endswith("]")):
            continue
        key = name[len("metadata[") : -1]
        if key in labels and labels[key] != value:
            detail = f"given twice, as {labels[key]!r} and {value!r}: no job has both"
            raise InvalidInput(f"{name}: {detail}.", [Problem(f"/{name}", detail)])
        labels[key] = value
    known = {"status", "method", "limit", "cursor"} | {f"metadata[{key}]" for key in labels}
    pages.refuse_unknown_parameters(request, known)
    return labels
