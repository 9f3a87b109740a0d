"""The envelopes around what the library defines: data sets, models, answers and lists as they travel.

Those of jobs: ``api/job_schemas.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from limbeck.formats import Format
from models.alias import Alias
from models.dataset import Dataset
from models.model import Model, ModelFile, ModelKind


class Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


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
    """Raised by every switch, and another one when the name is deleted and made again; the ETag."""
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
    """A text, ``{"text": …, "text_pair": …}``, or a list of either; for a student that tags tokens a text, ``{"tokens":
    […]}``, or a list of either; for one that answers questions ``{"question": …, "context": …}``, or a list of these;
    for one that classes images base64 of an image, or a list."""
    parameters: PredictParameters = PredictParameters()


class InferenceRequest(PredictRequest):
    """The same as Hugging Face's client sends it, which has parameters of feature-extraction beside the inputs."""

    normalize: Literal[True] | None = None
    """Vectors always have a length of 1."""
    truncate: Literal[True] | None = None
    """Texts that are longer than the student reads are always cut."""


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
