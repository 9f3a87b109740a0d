"""What may go: ended jobs by age and by size, and stored objects that no row names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from limbeck.errors import Conflict, NotFound
from models.base import db_now
from models.dataset import Dataset
from models.db import Database
from models.job import HELD, TERMINAL, Job
from models.model import ModelFile
from models.repository import jobs
from models.repository.catalogue import dataset_keys
from models.settings import Settings
from models.storage import Entry, Storage

#: An object is stored first and named by a row afterwards; so long it may take in between.
ORPHAN_GRACE = timedelta(hours=1)

#: Below it lie teachers' answers that jobs share; whoever misses them computes them again.
ANSWERS = "cache/teacher"

#: Below it lie finished parts of passes that are not whole yet. No row names them: those that stay behind are orphans.
PARTS = "cache/teacher-parts"

_PREFIXES = ("datasets", "models", "jobs", ANSWERS, PARTS)
_GB = 1000**3


@dataclass(frozen=True, slots=True)
class GcReport:
    """What went, or with ``dry_run`` would go."""

    jobs: tuple[str, ...]
    objects: int  #: stored objects, of those jobs and of nobody
    orphans: int  #: how many of them no row named
    answers: int  #: how many of them were teachers' answers that had not been used for longest
    bytes: int
    kept: tuple[str, ...]  #: jobs that were due, but other jobs learn from their models, or aliases mean them
    bytes_left: int  #: in the storage afterwards
    dry_run: bool


def gc(
    database: Database, storage: Storage, settings: Settings, now: datetime | None = None, *, dry_run: bool = False
) -> GcReport:
    """Delete ended jobs after ``keep_jobs_days``, orphans, teachers' answers above ``teacher_cache_gb``, then, above
    ``max_storage_gb``, more of those, which can be computed again, and the oldest ended jobs.

    Args:
        now: default: the database's clock.
        dry_run: change nothing, and tell what would go.

    Raises:
        Unavailable: the database or the storage is away; what has gone until then is gone whole.
    """
    listed = {entry.key: entry for prefix in _PREFIXES for entry in storage.list(prefix)}
    sweep = _Sweep(database, storage, listed, dry_run)
    now = now or _clock(database)
    if settings.keep_jobs_days is not None:
        for job_id in _ended(database, before=now - timedelta(days=settings.keep_jobs_days)):
            sweep.delete_job(job_id)
    sweep.delete_orphans(before=now - ORPHAN_GRACE)
    sweep.shrink_answers(settings.teacher_cache_gb * _GB)
    if settings.max_storage_gb is not None:
        sweep.shrink_answers(sweep.bytes_of_answers - (sweep.bytes_left - settings.max_storage_gb * _GB))
        for job_id in _ended(database, before=now):
            if sweep.bytes_left <= settings.max_storage_gb * _GB:
                break
            sweep.delete_job(job_id)
    return sweep.report()


def referenced_keys(session: Session) -> set[str]:
    """Every storage key that a row names."""
    keys = set(session.scalars(select(ModelFile.key)))
    for dataset in session.scalars(select(Dataset)):
        keys.update(dataset_keys(dataset))
    for checkpoint in session.scalars(select(Job.checkpoint).where(Job.checkpoint.is_not(None))):
        keys.update(jobs.checkpoint_keys(checkpoint))
    return keys


@dataclass(slots=True)
class _Sweep:
    database: Database
    storage: Storage
    listed: dict[str, Entry]  #: what is in the storage; shrinks
    dry_run: bool
    jobs: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    objects: int = 0
    orphans: int = 0
    answers: int = 0
    freed: int = 0

    @property
    def bytes_left(self) -> int:
        return sum(entry.bytes for entry in self.listed.values())

    @property
    def bytes_of_answers(self) -> int:
        return sum(entry.bytes for entry in self._answers())

    def shrink_answers(self, limit: float) -> None:
        """Delete teachers' answers until they take no more bytes; first those that were not used for longest."""
        left = self.bytes_of_answers
        doomed = []
        for entry in sorted(self._answers(), key=lambda entry: entry.modified):
            if left <= limit:
                break
            doomed.append(entry.key)
            left -= entry.bytes
        self.answers += len(doomed)
        self._delete(doomed)

    def _answers(self) -> list[Entry]:
        return [entry for key, entry in self.listed.items() if key.startswith(f"{ANSWERS}/")]

    def delete_job(self, job_id: str) -> None:
        if job_id in self.jobs or job_id in self.kept:
            return
        try:
            with self.database.session() as session, session.begin_nested() as savepoint:
                keys = jobs.delete(session, job_id)
                if self.dry_run:
                    savepoint.rollback()
        except NotFound:  # somebody else has just deleted it
            return
        except Conflict:
            self.kept.append(job_id)
            return
        self.jobs.append(job_id)
        self._delete(keys)

    def delete_orphans(self, before: datetime) -> None:
        with self.database.reading() as session:
            # In this order: an attempt that succeeds in between is in one of the two.
            under_way = tuple(_under_way(session))
            named = referenced_keys(session)
        orphans = [
            entry.key
            for entry in self.listed.values()
            if entry.modified < before
            and entry.key not in named
            and not entry.key.startswith((*under_way, f"{ANSWERS}/"))
        ]
        self.orphans += len(orphans)
        self._delete(orphans)
        if not self.dry_run:
            self.freed += self.storage.discard_unfinished(before)

    def report(self) -> GcReport:
        return GcReport(
            jobs=tuple(self.jobs),
            objects=self.objects,
            orphans=self.orphans,
            answers=self.answers,
            bytes=self.freed,
            kept=tuple(self.kept),
            bytes_left=self.bytes_left,
            dry_run=self.dry_run,
        )

    def _delete(self, keys: list[str]) -> None:
        if not self.dry_run:
            self.storage.delete(keys)
        gone = [self.listed.pop(key) for key in keys if key in self.listed]
        self.objects += len(gone)
        self.freed += sum(entry.bytes for entry in gone)


def attempt_prefix(job_id: str, fence: int) -> str:
    """Where the storage has what an attempt made, its models; they stay there when the job has succeeded."""
    return f"jobs/{job_id}/attempts/{fence}/"


def _under_way(session: Session) -> Iterator[str]:
    """Prefixes below which a worker may be about to name an object that is there already."""
    for job_id, status, fence in session.execute(
        select(Job.id, Job.status, Job.fence).where(Job.status.not_in(TERMINAL))
    ):
        yield f"jobs/{job_id}/checkpoints/"
        if status in HELD:
            yield attempt_prefix(job_id, fence)


def _ended(database: Database, *, before: datetime) -> list[str]:
    with database.reading() as session:
        query = select(Job.id).where(Job.status.in_(TERMINAL), Job.finished_at < before)
        return list(session.scalars(query.order_by(Job.finished_at, Job.id)))


def _clock(database: Database) -> datetime:
    with database.reading() as session:
        return session.scalars(select(db_now())).one()
