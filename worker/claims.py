"""What a worker has taken of another one's job: a part of a teacher's pass, a place for a host. All functions take the
session first; the caller's block is the transaction.

A claim has a lease, is guarded by the number of claims before it, and ends with the attempt that offers. Nothing about
the job is written by who has one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from models.job import JobStatus
from models.offered import Offered
from models.repository.offered import free, stands
from worker.lease import Holder, in_seconds

Row = TypeVar("Row", bound=Offered)


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that this worker has."""

    table: ClassVar[type[Offered]]
    #: Of its job, while it is kept.
    kept_while: ClassVar[Collection[JobStatus]] = (JobStatus.RUNNING,)

    id: int
    claims: int
    job_id: str


def take(
    session: Session,
    table: type[Row],
    holder: Holder,
    *wanted: ColumnElement[bool],
    order: Sequence[Any],
    lease_seconds: float,
) -> Row | None:
    """The first row in this order that stands, is free and is ``wanted``; None where there is none. One statement
    chooses and takes it, so that of any number of workers one gets it."""
    chosen = (
        select(table.id)
        .where(stands(table), free(table), *wanted)
        .order_by(*order)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return session.scalar(
        update(table)
        .where(table.id == chosen, free(table))
        .values(worker=holder.worker, claims=table.claims + 1, lease_expires_at=in_seconds(lease_seconds))
        .returning(table)
        .execution_options(synchronize_session=False, populate_existing=True)
    )


def keep(session: Session, taken: Taken, lease_seconds: float) -> bool:
    """Renew the lease; False where it is wanted no more, or somebody else's."""
    renewed = session.scalar(
        update(taken.table)
        .where(*_mine(taken), stands(taken.table, taken.kept_while))
        .values(lease_expires_at=in_seconds(lease_seconds))
        .returning(taken.table.id)
        .execution_options(synchronize_session=False)
    )
    return renewed is not None


def wanted(session: Session, taken: Taken) -> bool:
    """Whether it is still wanted, and this worker's; reads only."""
    query = select(taken.table.id).where(*_mine(taken), stands(taken.table, taken.kept_while))
    return session.scalar(query) is not None


def give_back(session: Session, taken: Taken) -> None:
    """Let others have it, if it is still wanted."""
    execute(session, update(taken.table).where(*_mine(taken)).values(worker=None, lease_expires_at=None))


def finish(session: Session, taken: Taken) -> None:
    """Nobody has to take it any more."""
    execute(session, delete(taken.table).where(*_mine(taken)))


def execute(session: Session, statement: Any) -> None:
    session.execute(statement.execution_options(synchronize_session=False))


def _mine(taken: Taken) -> tuple[ColumnElement[bool], ...]:
    return (taken.table.id == taken.id, taken.table.claims == taken.claims)
