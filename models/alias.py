"""A name of a user's own for whatever model answers under it just now."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UtcMillis


class Alias(Base):
    __tablename__ = "aliases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    #: Counts the switches, from anywhere; a caller who switches may say from which version.
    version: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(UtcMillis)
