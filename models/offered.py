"""What the tables have in common in which a job that runs offers something to idle workers.

A row is an offer, and who took it. It stands for as long as the job runs under the fence that offered it.
"""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UtcMillis


class Offered(Base):
    __abstract__ = True

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    #: The fence of the attempt that offers it.
    fence: Mapped[int] = mapped_column(BigInteger)
    #: What a machine has to be to compute the same bits.
    likeness: Mapped[str] = mapped_column(String(300))
    #: With which it computes them; of GPUs it does not matter.
    threads: Mapped[int]
    #: Raised by every claim; a worker that has an older one has lost it. It begins anywhere: SQLite gives the id of a
    #: row that is gone to the next one, which whoever had the first must not take for its own.
    claims: Mapped[int] = mapped_column(BigInteger, default=lambda: secrets.randbits(48))
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcMillis)
