"""What a job that runs offers to idle workers: parts of its teacher's pass over the training texts.

A row is an offer and no more: the answers lie in the storage, and a job waits for none. It stands for as long as the
job runs under the same fence, and goes when its part is done, by whomever.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, UtcMillis


class TeacherPart(Base):
    __tablename__ = "teacher_parts"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    #: The fence of the attempt that offers it.
    fence: Mapped[int] = mapped_column(BigInteger)
    #: Of the whole pass: a hash of everything that its answers are computed from.
    key: Mapped[str] = mapped_column(String(64))
    #: Its batches: from the first to the one before the end.
    first_batch: Mapped[int]
    end_batch: Mapped[int]
    #: The phase under whose name the job's checkpoint has the teacher's weights.
    teacher: Mapped[str] = mapped_column(String(64))
    #: What a machine has to be to compute the same bits.
    likeness: Mapped[str] = mapped_column(String(300))
    threads: Mapped[int]
    #: Raised by every claim; a helper that has an older one has lost the part.
    claims: Mapped[int] = mapped_column(BigInteger, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcMillis)

    __table_args__ = (Index("ix_teacher_parts_job", "job_id", "key", "first_batch", unique=True),)
