"""An uploaded data set, stored as one Parquet file per split."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Json, UtcMillis


class Dataset(Base):
    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UtcMillis)
    #: {"train": {"rows", "bytes", "sha256", "key"}, …}
    splits: Mapped[dict[str, Any]] = mapped_column(Json)
    #: Columns, label counts, lengths, warnings: limbeck.data.profile
    profile: Mapped[dict[str, Any]] = mapped_column(Json)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
