"""What a job tells: events for people, points of metrics, pieces of its log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Json, Prose, UtcMillis


class Event(Base):
    """Numbered within its job from 1 on without gaps, so that a reader can go on where it stopped."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcMillis)
    kind: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Prose)
    data: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)


class MetricPoint(Base):
    """One point of one series. A resumed attempt writes the same step again; the later row wins."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    series: Mapped[str] = mapped_column(String(100), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column(Float)
    at: Mapped[datetime] = mapped_column(UtcMillis)


class LogChunk(Base):
    """A piece of what an attempt's process printed."""

    __tablename__ = "log_chunks"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(UtcMillis)
    text: Mapped[str] = mapped_column(Prose)

    __table_args__ = (Index("ix_log_chunks_job", "job_id", "id"),)
