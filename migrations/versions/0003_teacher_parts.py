"""Parts of a teacher's pass that a job offers to idle workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "teacher_parts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("first_batch", sa.Integer(), nullable=False),
        sa.Column("end_batch", sa.Integer(), nullable=False),
        sa.Column("teacher", sa.String(length=64), nullable=False),
        sa.Column("likeness", sa.String(length=300), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("claims", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("lease_expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_teacher_parts_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_teacher_parts")),
    )
    op.create_index("ix_teacher_parts_job", "teacher_parts", ["job_id", "key", "first_batch"], unique=True)


def downgrade() -> None:
    op.drop_table("teacher_parts")
