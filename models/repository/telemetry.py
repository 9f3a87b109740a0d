"""What jobs tell: events, metrics, logs, and the ledger of their attempts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from limbeck.errors import NotFound
from models.attempt import Attempt
from models.base import db_now
from models.event import Event, LogChunk, MetricPoint
from models.job import Job

_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one series at one step of the job."""

    series: str
    step: int
    value: float


class MetricValue(TypedDict):
    """A point as it is read back."""

    step: int
    value: float
    at: datetime


def append_event(session: Session, job_id: str, kind: str, message: str, data: Mapping[str, Any]) -> Event:
    """Write the job's next event, in the transaction of the change that it tells of.

    Raises:
        NotFound: there is no such job.
    """
    sequence = session.scalar(
        update(Job)
        .where(Job.id == job_id)
        .values(last_event=Job.last_event + 1, version=Job.version + 1)
        .returning(Job.last_event)
        .execution_options(synchronize_session=False)
    )
    if sequence is None:
        raise NotFound(f"There is no job {job_id!r}.")
    row = {"job_id": job_id, "sequence": sequence, "kind": kind, "message": message, "data": dict(data)}
    return session.scalars(insert(Event).values(at=db_now(), **row).returning(Event)).one()


def events_after(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """At most ``limit`` events with a sequence above ``after``, in order."""
    return list(
        session.scalars(
            select(Event).where(Event.job_id == job_id, Event.sequence > after).order_by(Event.sequence).limit(limit)
        )
    )


def add_metrics(session: Session, job_id: str, points: Iterable[Point]) -> None:
    """Write points; one that is there already (a resumed attempt repeats steps) gets the new value.

    NaN and infinity are left out: neither SQLite nor JSON has them.
    """
    latest = {(p.series, p.step): p.value for p in points if math.isfinite(p.value)}
    rows = [
        {"job_id": job_id, "series": series, "step": step, "value": value} for (series, step), value in latest.items()
    ]
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        insertion = dialect.insert(MetricPoint).values(
            [row | {"at": db_now()} for row in rows[start : start + _ROWS_AT_ONCE]]
        )
        session.execute(
            insertion.on_conflict_do_update(
                index_elements=["job_id", "series", "step"],
                set_={"value": insertion.excluded.value, "at": insertion.excluded.at},
            )
        )


def metrics(session: Session, job_id: str, max_points: int) -> dict[str, list[MetricValue]]:
    """Every series of the job, by step, each thinned to at most ``max_points`` (at least 4).

    A series that is longer is cut into stretches, and the lowest and the highest point of each stay, as do the first
    and the last: a spike is never thinned away.
    """
    buckets = (max(max_points, 4) - 2) // 2
    total = func.count().over(partition_by=MetricPoint.series)
    place = func.row_number().over(partition_by=MetricPoint.series, order_by=MetricPoint.step) - 1
    numbered = (
        select(MetricPoint.series, MetricPoint.step, MetricPoint.value, MetricPoint.at)
        .add_columns(place.label("place"), total.label("total"))
        .where(MetricPoint.job_id == job_id)
        .subquery()
    )
    stretch = (numbered.c.series, numbered.c.place * buckets // numbered.c.total)
    lowest = func.row_number().over(partition_by=stretch, order_by=(numbered.c.value.asc(), numbered.c.step))
    highest = func.row_number().over(partition_by=stretch, order_by=(numbered.c.value.desc(), numbered.c.step))
    ranked = select(*numbered.c, lowest.label("low"), highest.label("high")).subquery()
    ends = or_(ranked.c.place == 0, ranked.c.place == ranked.c.total - 1)
    kept = or_(ranked.c.total <= max_points, ends, ranked.c.low == 1, ranked.c.high == 1)
    query = select(ranked.c.series, ranked.c.step, ranked.c.value, ranked.c.at).where(kept)
    series: dict[str, list[MetricValue]] = {}
    for name, step, value, at in session.execute(query.order_by(ranked.c.series, ranked.c.step)):
        series.setdefault(name, []).append({"step": step, "value": value, "at": at})
    return series


def add_log(session: Session, job_id: str, fence: int, text: str) -> None:
    """Write a piece of what the attempt under ``fence`` printed."""
    session.execute(insert(LogChunk).values(job_id=job_id, fence=fence, at=db_now(), text=text))


def log_size(session: Session, job_id: str) -> int:
    """How many characters the job's log has, to keep it below its limit."""
    query = select(func.coalesce(func.sum(func.length(LogChunk.text)), 0)).where(LogChunk.job_id == job_id)
    return int(session.scalar(query) or 0)


def read_log(session: Session, job_id: str) -> Iterator[str]:
    """The job's log in pieces, in the order of writing, never whole in memory."""
    last = 0
    while True:
        query = select(LogChunk.id, LogChunk.text).where(and_(LogChunk.job_id == job_id, LogChunk.id > last))
        rows = session.execute(query.order_by(LogChunk.id).limit(64)).all()
        if not rows:
            return
        for row in rows:
            yield row.text
        last = rows[-1].id


def attempts(session: Session, job_id: str) -> list[Attempt]:
    """The ledger, in order."""
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence)))


def write_ledger(session: Session, job_id: str, fence: int, **values: Any) -> None:
    """Change the attempt's row in the ledger, in the transaction of whoever may write to the job."""
    mine = (Attempt.job_id == job_id, Attempt.fence == fence)
    session.execute(update(Attempt).where(*mine).values(**values).execution_options(synchronize_session=False))
