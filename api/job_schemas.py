"""The envelopes of jobs as they travel: what is asked for, and what is told of a job, its attempts and its progress."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from api.places import Place
from api.schemas import Envelope
from limbeck.config import DistillConfig
from limbeck.errors import InvalidConfig, Problem
from limbeck.spec import Spec
from models.attempt import Attempt
from models.event import Event
from models.job import Job, JobStatus


class Resources(Spec):
    """What a job needs of the worker that runs it."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """As many as `training.devices`, of several hosts as many as on each: waits for a worker with so many free GPUs.
    With 0 any worker may take the job; one with GPUs gives it one for each device all the same."""


class JobRequest(DistillConfig):
    """A distillation, and what the service should know about it."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] | None = None
    """For people; default: made of method, teacher and data set."""
    metadata: dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,64}$")],
        Annotated[str, StringConstraints(max_length=500)],
    ] = Field(default={}, max_length=32)
    """Your own keys and values; jobs can be listed by them."""
    owner: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] = "default"
    """Among jobs of one priority, owners take turns."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher goes first."""
    resources: Resources = Resources()

    @classmethod
    def parse(cls, document: Any, *, stored: bool = False) -> Self:
        """As a configuration is parsed; GPUs and devices have to agree.

        Raises:
            InvalidConfig
        """
        wanted = super().parse(document, stored=stored)
        gpus, training = wanted.resources.gpus, wanted.training
        needed = training.devices // training.hosts
        if gpus not in (0, needed):
            on_each = f" on {training.hosts} hosts" * (training.hosts > 1)
            detail = (
                f"found {gpus}; training.devices is {training.devices}{on_each}, and each has one GPU: {needed}, or 0 "
                "for any worker"
            )
            raise InvalidConfig(
                f"The job cannot be done: /resources/gpus: {detail}", [Problem("/resources/gpus", detail)]
            )
        return wanted

    def config(self) -> DistillConfig:
        """The distillation alone."""
        return DistillConfig.model_validate({name: getattr(self, name) for name in DistillConfig.model_fields})


class DocumentOf:
    """Marks plain JSON that a route parses itself, described in OpenAPI as the model that it is parsed into.

    The route then has the document as it was sent, to hash it and to lead pointers into it.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.any_schema()

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self._model.__pydantic_core_schema__)


class ProgressView(Envelope):
    """See ``limbeck.callbacks.Progress``."""

    stage: str
    step: int
    total_steps: int
    percent: float
    examples_per_second: float | None = None
    eta_seconds: float | None = None


class ErrorView(Envelope):
    code: str
    message: str
    retryable: bool = False


class ResultView(Envelope):
    model_id: str
    """The student."""
    baseline_id: str | None = None
    verdict: Any = None
    """The gate's answer."""


class SecondsRange(Envelope):
    """An estimate from the middle half of the jobs that succeeded last."""

    least: float
    most: float

    @classmethod
    def of(cls, bounds: tuple[float, float]) -> SecondsRange:
        return cls(least=bounds[0], most=bounds[1])


class JobView(Envelope):
    """A job: a request with a life."""

    id: str
    object: Literal["job"] = "job"
    name: str
    owner: str
    priority: int
    status: JobStatus
    stage: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queue_position: int | None
    """1 is next; null when the job does not wait."""
    starts_in_seconds: SecondsRange | None
    """When a waiting job is likely to begin; null until three jobs have succeeded, and while it waits for a worker that
    is not there."""
    waits_for: str | None
    """For people: what a waiting job needs that none of the connected workers is, such as one with so many GPUs."""
    resources: Resources
    attempt: int
    progress: ProgressView | None
    config: dict[str, Any]
    """The DistillConfig with every default filled in."""
    metadata: dict[str, str]
    provenance: dict[str, Any]
    """Revisions, hashes, versions, device: what a repeat needs."""
    error: ErrorView | None
    result: ResultView | None

    @classmethod
    def of(cls, job: Job, place: Place | None) -> JobView:
        return cls.model_validate(
            {
                "id": job.id,
                "name": job.name,
                "owner": job.owner,
                "priority": job.priority,
                "status": job.status,
                "stage": job.stage,
                "created_at": job.created_at,
                "started_at": job.started_at,
                "finished_at": job.finished_at,
                "queue_position": place and place.position,
                "starts_in_seconds": place
                and place.starts_in
                and dict(zip(("least", "most"), place.starts_in, strict=True)),
                "waits_for": place and place.waits_for,
                "resources": {"gpus": job.gpus},
                "attempt": job.attempt,
                "progress": job.progress,
                "config": job.config,
                "metadata": job.labels,
                "provenance": job.provenance,
                "error": job.error,
                "result": job.result,
            }
        )


class ValidationView(Envelope):
    """What ``:validate`` found; a configuration that is not valid gets a problem instead."""

    object: Literal["validation"] = "validation"
    valid: Literal[True] = True
    config: dict[str, Any]
    """The DistillConfig with every default filled in."""
    teacher: dict[str, Any] | None
    """What is known of the teacher without loading it; null where it could not be read now."""
    notes: list[str]
    """What could not be checked now, and why; and what was chosen and is not used."""


class EventView(Envelope):
    sequence: int
    kind: str
    message: str
    at: datetime
    data: dict[str, Any]

    @classmethod
    def of(cls, event: Event) -> EventView:
        return cls(sequence=event.sequence, kind=event.kind, message=event.message, at=event.at, data=event.data)


class AttemptView(Envelope):
    number: int
    fence: int
    worker: str
    host: str
    pid: int | None
    started_at: datetime
    ended_at: datetime | None
    resumed_from_step: int
    last_step: int
    outcome: str | None
    """``succeeded failed cancelled paused handed_back lost``; null while it runs."""
    reason: str | None
    message: str | None

    @classmethod
    def of(cls, attempt: Attempt) -> AttemptView:
        return cls.model_validate({name: getattr(attempt, name) for name in cls.model_fields})


class PointView(Envelope):
    step: int
    value: float
    at: datetime


class MetricsView(Envelope):
    object: Literal["metrics"] = "metrics"
    series: dict[str, list[PointView]]
    """By name, e.g. ``distilling/loss``; steps count within the whole job."""
