"""What a training over several hosts offers to idle workers: a place for each host that is missing.

A row is an offer, and who took it. What the hosts then say to each other goes through connections of their own.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UtcMillis


class HostPlace(Base):
    __tablename__ = "host_places"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    #: The fence of the attempt that offers it.
    fence: Mapped[int] = mapped_column(BigInteger)
    #: What a machine has to be to take steps that round alike.
    likeness: Mapped[str] = mapped_column(String(300))
    #: Ranks that are to run on the host, and GPUs that they need: as many, or none.
    devices: Mapped[int]
    gpus: Mapped[int]
    #: That they share where they have no GPUs.
    threads: Mapped[int]
    #: Where the host that leads listens, and what it wants to hear; worth nothing once the attempt has ended.
    address: Mapped[str] = mapped_column(String(200))
    port: Mapped[int]
    secret: Mapped[str] = mapped_column(String(64))
    #: Raised by every claim; a worker that has an older one has lost the place.
    claims: Mapped[int] = mapped_column(BigInteger, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcMillis)

    __table_args__ = (Index("ix_host_places_job", "job_id"),)
