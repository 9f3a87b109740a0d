"""The envelopes around what the library defines: jobs, data sets, models and lists as they travel."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from api.places import Place
from limbeck.config import DistillConfig
from limbeck.errors import InvalidConfig, Problem
from limbeck.formats import Format
from limbeck.spec import Spec
from models.alias import Alias
from models.attempt import Attempt
from models.dataset import Dataset
from models.event import Event
from models.job import Job, JobStatus
from models.model import Model, ModelFile, ModelKind


class Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Resources(Spec):
    """What a job needs of the worker that runs it."""

    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """As many as `training.devices`: waits for a worker with so many free GPUs. With 0 any worker may take the job; one
    with GPUs gives it one for each device all the same."""


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
    def parse(cls, document: Any) -> Self:
        """As a configuration is parsed; GPUs and devices have to agree.

        Raises:
            InvalidConfig
        """
        wanted = super().parse(document)
        gpus, devices = wanted.resources.gpus, wanted.training.devices
        if gpus not in (0, devices):
            detail = (
                f"found {gpus}; training.devices is {devices}, and each has one GPU: {devices}, or 0 for any worker"
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
    """When a waiting job is likely to begin; null until three jobs have succeeded."""
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
    """What could not be checked now, and why."""


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


class SplitView(Envelope):
    rows: int
    bytes: int
    sha256: str


class DatasetView(Envelope):
    """An uploaded data set; a configuration names it ``dataset:{id}``."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    created_at: datetime
    splits: dict[str, SplitView]
    profile: dict[str, Any]
    bytes: int
    sha256: str

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetView:
        names = ("id", "name", "created_at", "splits", "profile", "bytes", "sha256")
        return cls.model_validate({name: getattr(dataset, name) for name in names})


class PreviewView(Envelope):
    object: Literal["preview"] = "preview"
    split: str
    rows: list[dict[str, Any]]


class FileView(Envelope):
    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, file: ModelFile) -> FileView:
        return cls(path=file.path, bytes=file.bytes, sha256=file.sha256)


class ModelSummary(Envelope):
    """A teacher, student or baseline with its lineage; a configuration names it ``model:{id}`` as its teacher."""

    id: str
    object: Literal["model"] = "model"
    kind: ModelKind
    name: str
    created_at: datetime
    job_id: str | None
    teacher: str | None
    dataset: str | None
    method: str | None
    task: str | None
    labels: list[str] | None
    architecture: str | None
    layers: int | None
    parameters: int | None
    bytes: int

    @classmethod
    def of(cls, model: Model) -> ModelSummary:
        names = ModelSummary.model_fields.keys() - {"object"}
        return cls.model_validate({name: getattr(model, name) for name in names})


class ModelView(ModelSummary):
    files: list[FileView]
    formats: list[Literal["safetensors"] | Format]
    """What ``/download`` has."""
    scorecard: dict[str, Any] | None
    """Of the job that made it."""


class AliasRequest(Envelope):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """The id of a student that can answer."""


class AliasView(Envelope):
    """A name that serves wherever a model's id does."""

    name: str
    object: Literal["alias"] = "alias"
    model: str
    version: int
    """Counts the switches; the ETag."""
    updated_at: datetime

    @classmethod
    def of(cls, alias: Alias) -> AliasView:
        return cls(name=alias.name, model=alias.model_id, version=alias.version, updated_at=alias.updated_at)


class PredictParameters(Envelope):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    top_k: int | Literal["all"] | None = Field(default=None)
    """How many labels, or answers to a question, to answer with, best first, or ``all``; default: the best one."""
    speed: float | None = Field(default=None, ge=0, le=1, strict=True)
    """For students with early exits (the method ``fastbert``): from 0, where every text goes through all layers, to 1,
    where every text leaves behind the first; default: what the job calibrated."""


class PredictRequest(Envelope):
    """Inputs as the pipelines of Hugging Face take them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    inputs: Any
    """A text, ``{"text": …, "text_pair": …}``, or a list of either; for a student that answers questions
    ``{"question": …, "context": …}``, or a list of these; for one that classes images base64 of an image, or a list."""
    parameters: PredictParameters = PredictParameters()


class CheckView(Envelope):
    ok: bool
    detail: str


class HealthView(Envelope):
    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, CheckView]


class FormView(Envelope):
    """One choice of a union with the JSON Schema of its fields."""

    type: str
    title: str
    description: str
    json_schema: dict[str, Any]


class ProblemError(Envelope):
    pointer: str
    """JSON pointer (RFC 6901) into the body, or the name of a parameter behind a slash."""
    detail: str
    location: str | None = Field(default=None, alias="in")
    """``query``, ``header`` or ``path`` where it is not the body."""


class ProblemView(Envelope):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    """For programs."""
    request_id: str
    errors: list[ProblemError]


Item = TypeVar("Item")


class Listing(Envelope, Generic[Item]):
    object: Literal["list"] = "list"
    data: Sequence[Item]
    has_more: bool = False
    next_cursor: str | None = None
