"""What a job that runs offers to idle workers: parts of its teacher's pass over the training texts.

A row is an offer and no more: the answers lie in the storage, and a job waits for none. It goes when its part is done,
by whomever.
"""

from __future__ import annotations

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from models.offered import Offered


class TeacherPart(Offered):
    __tablename__ = "teacher_parts"

    #: Of the whole pass: a hash of everything that its answers are computed from.
    key: Mapped[str] = mapped_column(String(64))
    #: Its batches: from the first to the one before the end.
    first_batch: Mapped[int]
    end_batch: Mapped[int]
    #: The phase under whose name the job's checkpoint has the teacher's weights.
    teacher: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("ix_teacher_parts_job", "job_id", "key", "first_batch", unique=True),)
