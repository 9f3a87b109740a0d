"""A job: a request with a life. The row is the truth; a Celery message only rings."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Json, UtcMillis, words


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL

    @property
    def held(self) -> bool:
        """A worker holds (or held, until its lease ran out) the job."""
        return self in HELD


TERMINAL = frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED})
HELD = frozenset({JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})


class Job(Base):
    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    owner: Mapped[str] = mapped_column(String(200), default="default")
    priority: Mapped[int] = mapped_column(default=0)
    status: Mapped[JobStatus] = mapped_column(words(JobStatus), default=JobStatus.QUEUED)
    stage: Mapped[str | None] = mapped_column(String(16))
    #: The DistillConfig as submitted, with every default filled in.
    config: Mapped[dict[str, Any]] = mapped_column(Json)
    #: Flat copies for filters.
    method: Mapped[str] = mapped_column(String(64))
    #: The user's own keys and values.
    labels: Mapped[dict[str, str]] = mapped_column("metadata", Json, default=dict)
    webhook_url: Mapped[str | None] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    #: sha256 of the canonical body, to tell a repeat from another request under the same key.
    request_hash: Mapped[str] = mapped_column(String(64))
    #: GPUs that the job needs of one worker; with 0 it runs on a CPU slot too.
    gpus: Mapped[int] = mapped_column(default=0)

    created_at: Mapped[datetime] = mapped_column(UtcMillis)
    started_at: Mapped[datetime | None] = mapped_column(UtcMillis)
    finished_at: Mapped[datetime | None] = mapped_column(UtcMillis)
    #: Raised by every write; the ETag of the job.
    version: Mapped[int] = mapped_column(BigInteger, default=1)

    #: Attempts begun so far, and after how many the job fails for good.
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=3)
    #: Raised by every claim. A write that carries an older fence changes no row.
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcMillis)

    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    #: {"step": int, "files": {name: {"sha256", "bytes", "key"}}}; the state from which the next attempt goes on.
    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(Json)
    #: Revisions, hashes, versions, device: what a repeat needs.
    provenance: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    #: {"code", "message", "retryable"}
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    #: {"model_id", "baseline_id"?, "verdict"}
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    scorecard: Mapped[dict[str, Any] | None] = mapped_column(Json)
    #: The last number given to one of the job's events.
    last_event: Mapped[int] = mapped_column(BigInteger, default=0)

    __table_args__ = (
        Index("ix_jobs_claim", "status", "priority", "created_at"),
        Index("ix_jobs_owner_status", "owner", "status"),
        Index("ix_jobs_created", "created_at", "id"),
    )
