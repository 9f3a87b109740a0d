"""A teacher or a student with its files and where it came from."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Json, UtcMillis, words


class ModelKind(StrEnum):
    TEACHER = "teacher"  # uploaded
    STUDENT = "student"
    BASELINE = "baseline"


class Model(Base):
    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[ModelKind] = mapped_column(words(ModelKind))
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UtcMillis)
    #: Lineage. The job may be deleted while its student is kept.
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    teacher: Mapped[str | None] = mapped_column(String(300))
    dataset: Mapped[str | None] = mapped_column(String(300))
    method: Mapped[str | None] = mapped_column(String(64))
    task: Mapped[str | None] = mapped_column(String(64))
    labels: Mapped[list[str] | None] = mapped_column(Json)
    architecture: Mapped[str | None] = mapped_column(String(100))
    layers: Mapped[int | None]
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)

    files: Mapped[list[ModelFile]] = relationship(
        lazy="raise", order_by="ModelFile.path", cascade="all, delete-orphan", passive_deletes=True
    )


class ModelFile(Base):
    __tablename__ = "model_files"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    #: Relative, with slashes, e.g. onnx/model.onnx
    path: Mapped[str] = mapped_column(String(500), primary_key=True)
    #: Where the storage has it.
    key: Mapped[str] = mapped_column(String(500))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
