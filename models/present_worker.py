"""A worker that is connected, and what it has: so that a job that none of them can serve says what it waits for."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UtcMillis


class PresentWorker(Base):
    __tablename__ = "workers"

    #: The name by which it holds jobs.
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    #: That it has, free or not; 0 where it computes on its cores.
    gpus: Mapped[int]
    #: Past that moment it counts as gone, unless it says that it is there.
    expires_at: Mapped[datetime] = mapped_column(UtcMillis)
