"""The ledger of attempts: who ran a job, from where, and how it ended."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Prose, UtcMillis

#: How an attempt ends.
OUTCOMES = ("succeeded", "failed", "cancelled", "paused", "handed_back", "lost")


class Attempt(Base):
    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    #: The fence under which the attempt wrote.
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int]
    worker: Mapped[str] = mapped_column(String(200))
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int | None]
    started_at: Mapped[datetime] = mapped_column(UtcMillis)
    ended_at: Mapped[datetime | None] = mapped_column(UtcMillis)
    resumed_from_step: Mapped[int] = mapped_column(default=0)
    last_step: Mapped[int] = mapped_column(default=0)
    #: One of :data:`OUTCOMES`.
    outcome: Mapped[str | None] = mapped_column(String(32))
    #: The code of the fault, e.g. out_of_memory, killed, worker_lost.
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str | None] = mapped_column(Prose)
