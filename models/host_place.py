"""What a training over several hosts offers to idle workers: a place for each host that is missing.

What the hosts then say to each other goes through connections of their own.
"""

from __future__ import annotations

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from models.offered import Offered


class HostPlace(Offered):
    __tablename__ = "host_places"

    #: Ranks that are to run on the host, and GPUs that they need: as many, or none.
    devices: Mapped[int]
    gpus: Mapped[int]
    #: Where the host that leads listens, and what it wants to hear; worth nothing once the attempt has ended.
    address: Mapped[str] = mapped_column(String(200))
    port: Mapped[int]
    secret: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("ix_host_places_job", "job_id"),)
