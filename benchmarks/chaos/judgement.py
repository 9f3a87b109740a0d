"""How every job ended: read from the product's tables and, beside them, from the ledger that the database kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.orm import Session

from benchmarks.chaos.evidence import Together
from benchmarks.chaos.faults import Outage
from benchmarks.chaos.repeats import Cost, Mark, exposures, repeated, stretches
from models.attempt import Attempt
from models.db import Database
from models.event import Event
from models.job import Job, JobStatus
from models.model import Model, ModelFile, ModelKind

#: Two processes may train one job for so long when the database's clock jumps: a worker looks at its row once a second.
#: Where it cannot look just then, the time until it can is not counted: its trainer ends with the lease at the latest.
MAY_OVERLAP_SECONDS = 3.0
_ENDED = "('succeeded', 'failed', 'cancelled')"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of the jobs, and what it took."""

    jobs: int
    once: int
    lost: Sequence[str]  #: of each, what became of it
    twice: Mapping[str, Sequence[str]]  #: job to what shows it
    attempts: int
    outcomes: Mapping[str, int]  #: of attempts
    repeated: Sequence[Cost]  #: for each attempt that followed another, and each new start of an attempt's ranks
    intervals: Sequence[Cost]  #: between two checkpoints of one attempt, for each pair

    @property
    def calm_seconds(self) -> list[float]:
        """From one checkpoint to the commit of the next, with nothing in its way; the shortest first."""
        return sorted(one.seconds for one in self.intervals if not one.away)

    @property
    def interval_seconds(self) -> float:
        """What 95 % of them are below: the longest one is an accident, and would excuse any other. 0 without any."""
        calm = self.calm_seconds
        return calm[int(0.95 * (len(calm) - 1))] if calm else 0.0

    @property
    def over_an_interval(self) -> Sequence[Cost]:
        """What was repeated beyond one interval, the time not counted in which no checkpoint could be committed."""
        return [one for one in self.repeated if one.worked > self.interval_seconds]


def judge(
    database: Database,
    accepted: Mapping[str, str],
    together: Sequence[tuple[str, Together]],
    outages: Sequence[Outage],
) -> Judgement:
    """Read everything.

    Args:
        accepted: idempotency key to job id, of the submits that the API answered with 202.
        together: jobs that two processes trained at once, and when.
        outages: when no checkpoint could be committed.
    """
    with database.reading() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        attempts = list(session.scalars(select(Attempt).order_by(Attempt.job_id, Attempt.fence)))
        students = _count(session, Model.job_id, Model.kind == ModelKind.STUDENT)
        bare = ~select(ModelFile).where(ModelFile.model_id == Model.id).exists()
        without_files = set(session.scalars(select(Model.job_id).where(bare)))
        twice = _signs_of_two_runs(session, students)
        again, between = _costs(attempts, _tracks(session), outages)
    for job_id, span in together:
        if (seconds := unexcused(span, outages)) > MAY_OVERLAP_SECONDS:
            twice[job_id].append(f"two processes trained it at once for {seconds:.1f} s")
    for job_id, count in Counter(accepted.values()).items():
        if count > 1:
            twice[job_id].append(f"{count} submits under different keys were answered with it")
    lost = _lost(jobs, accepted, students.keys() - without_files)
    return Judgement(
        jobs=len(jobs),
        once=len(jobs.keys() - lost.keys() - twice.keys()),
        lost=[f"{job_id}: {what}" for job_id, what in lost.items()],
        twice=dict(twice),
        attempts=len(attempts),
        outcomes=dict(Counter(str(one.outcome) for one in attempts)),
        repeated=again,
        intervals=between,
    )


def unexcused(span: Together, outages: Sequence[Outage]) -> float:
    """Seconds of the span in which none of its workers stood still and all could ask the database whose job it is."""
    unable = (outage.overlap(span.begin, span.end, worker) for outage in outages for worker in span.workers)
    return span.seconds - max(unable, default=0.0)


def _lost(jobs: Mapping[str, Job], accepted: Mapping[str, str], with_student: Set[str]) -> dict[str, str]:
    """Job to what became of it instead."""
    lost = {
        job_id: f"{key} was answered with 202 and is not there"
        for key, job_id in accepted.items()
        if job_id not in jobs
    }
    for job in jobs.values():
        if job.status is not JobStatus.SUCCEEDED:
            lost[job.id] = f"it is {job.status}: {job.error}"
        elif job.id not in with_student:
            lost[job.id] = "it has succeeded, and there is no student"
    return lost


def _signs_of_two_runs(session: Session, students: Mapping[str, int]) -> defaultdict[str, list[str]]:
    """Job to what shows that it ended more than once."""
    signs: defaultdict[str, list[str]] = defaultdict(list)
    ended = _count(session, Event.job_id, Event.kind == "job.succeeded")
    became = text(
        "SELECT job_id, count(*) FROM chaos_ledger WHERE became = 'succeeded' AND was <> became GROUP BY job_id"
    )
    left = text(f"SELECT job_id, count(*) FROM chaos_ledger WHERE was IN {_ENDED} AND became <> was GROUP BY job_id")
    for counts, allowed, what in (
        (ended, 1, "events that it has succeeded"),
        (students, 1, "students"),
        (dict(session.execute(became).all()), 1, "changes into succeeded in the database's ledger"),
        (dict(session.execute(left).all()), 0, "changes out of an ended state in the database's ledger"),
    ):
        for job_id, count in counts.items():
            if count > allowed:
                signs[job_id].append(f"{count} {what}")
    return signs


def _count(session: Session, by: Any, which: ColumnElement[bool]) -> dict[str, int]:
    return dict(session.execute(select(by, func.count()).where(which).group_by(by)).all())


def _tracks(session: Session) -> dict[tuple[str, int], list[Mark]]:
    """Job and fence to what the database wrote down of that attempt, in its order."""
    rows = session.execute(text("SELECT job_id, fence, step, kept, at FROM chaos_track ORDER BY number")).all()
    tracks: defaultdict[tuple[str, int], list[Mark]] = defaultdict(list)
    for job_id, fence, step, kept, at in rows:
        tracks[job_id, fence].append(Mark(step, bool(kept), at / 1000))
    return tracks


def _costs(
    attempts: Sequence[Attempt], tracks: Mapping[tuple[str, int], Sequence[Mark]], outages: Sequence[Outage]
) -> tuple[list[Cost], list[Cost]]:
    """What was repeated, for each attempt that followed another, and each start of its ranks after one was lost; and
    what lay between two checkpoints."""
    again: list[Cost] = []
    between: list[Cost] = []
    for before, after in zip(attempts, [*attempts[1:], None], strict=True):
        marks = tracks.get((before.job_id, before.fence), [])
        started = before.started_at.timestamp()

        def away(begin: float, end: float, pid: int | None = before.pid) -> float:
            return min(end - begin, sum(outage.overlap(begin, end, pid) for outage in outages))

        parts = stretches(marks)
        for part, following in pairwise([*parts, None]):
            begin = part[0].at if part is not parts[0] else started
            between += exposures(part, begin, away)
            if following is not None:
                again.append(repeated(part, following[0].step, begin, away))
            elif after is not None and after.job_id == before.job_id:
                again.append(repeated(part, after.resumed_from_step, begin, away))
    return again, between
