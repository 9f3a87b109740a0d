"""What a server answers, as frozen records. Fields that a newer server adds are kept, so that they can be printed."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from limbeck.errors import Conflict, JobFailed

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Record(BaseModel):
    """The base: frozen, and open for what it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)


class JobProgress(Record):
    """How far a running job is; see :class:`limbeck.callbacks.Progress`."""

    stage: str
    step: int
    total_steps: int
    percent: float
    examples_per_second: float | None = None
    eta_seconds: float | None = None


class Fault(Record):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool = False


class Outcome(Record):
    """What a job that succeeded left."""

    model_id: str
    """The student."""
    baseline_id: str | None = None
    verdict: Any = None
    """The gate's answer; see :class:`limbeck.scorecard.Verdict`."""


class SecondsRange(Record):
    """An estimate."""

    least: float
    most: float


class Job(Record):
    """A request with a life."""

    id: str
    name: str
    status: str
    """``queued running pausing paused cancelling cancelled succeeded failed``"""
    stage: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queue_position: int | None = None
    starts_in_seconds: SecondsRange | None = None
    waits_for: str | None = None
    """What a waiting job needs that none of the connected workers is."""
    attempt: int = 0
    progress: JobProgress | None = None
    config: dict[str, Any]
    """The DistillConfig with every default filled in."""
    metadata: dict[str, str] = {}
    error: Fault | None = None
    result: Outcome | None = None

    @property
    def ended(self) -> bool:
        """The status will not change any more."""
        return self.status in ENDED

    @property
    def student_id(self) -> str:
        """The id of the student.

        Raises:
            JobFailed: the job failed or was cancelled; the message says why.
            Conflict: the job has not ended yet.
        """
        if self.result is not None:
            return self.result.model_id
        if self.ended:
            reason = self.error.message if self.error else f"it was {self.status}"
            raise JobFailed(f"Job {self.id} has no student: {reason}")
        raise Conflict(f"Job {self.id} has no student yet: it is {self.status}. Wait until it has succeeded.")


class Event(Record):
    """Something that a person wants to know about a job."""

    sequence: int
    """Numbered within the job, from 1 on."""
    kind: str
    message: str
    at: datetime | None = None
    data: dict[str, Any] = {}


class Attempt(Record):
    """One try at a job."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    resumed_from_step: int = 0
    outcome: str | None = None
    reason: str | None = None


class Dataset(Record):
    """An uploaded data set."""

    id: str
    name: str
    created_at: datetime
    splits: dict[str, Any]
    profile: dict[str, Any] = {}

    @property
    def reference(self) -> str:
        """How a configuration names it: ``dataset:ds_…``."""
        return f"dataset:{self.id}"


class Model(Record):
    """A teacher or student."""

    id: str
    name: str
    kind: str
    created_at: datetime
    job_id: str | None = None
    labels: list[str] | None = None
    layers: int | None = None
    parameters: int | None = None
    bytes: int | None = None

    @property
    def reference(self) -> str:
        """How a configuration names it as its teacher: ``model:mdl_…``."""
        return f"model:{self.id}"


class Alias(Record):
    """A name that serves wherever a model's id does."""

    name: str
    model: str
    """The id of the model that it means."""
    version: int
    """Raised by every switch, and another one when the name is deleted and made again."""
    updated_at: datetime


class ModelFile(Record):
    """One file of a model."""

    path: str
    bytes: int
    sha256: str


Item = TypeVar("Item", bound=Record)


class Listing(Record, Generic[Item]):
    """One page of a list."""

    data: list[Item]
    has_more: bool = False
    next_cursor: str | None = None
