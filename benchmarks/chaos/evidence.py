"""What is seen from outside of the code under test: by a trigger in the database, in the table of processes, and by
writes under fences that are over."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Connection

from benchmarks.chaos.stack import is_trainer
from limbeck.errors import LeaseLost, Unavailable
from models.db import Database
from worker import lease
from worker.lease import Lease
from worker.telemetry import Batch

_LOOK_SECONDS = 0.5

_SQLITE_NOW = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
_SQLITE = (
    "CREATE TABLE chaos_ledger (number INTEGER PRIMARY KEY, job_id TEXT, fence INTEGER, was TEXT, became TEXT)",
    "CREATE TRIGGER chaos_status AFTER UPDATE OF status ON jobs BEGIN "
    "INSERT INTO chaos_ledger (job_id, fence, was, became) VALUES (NEW.id, NEW.fence, OLD.status, NEW.status); END",
    "CREATE TABLE chaos_track (number INTEGER PRIMARY KEY, job_id TEXT, fence INTEGER, step INTEGER, kept INTEGER, "
    f"at INTEGER DEFAULT ({_SQLITE_NOW}))",
    "CREATE TRIGGER chaos_told AFTER UPDATE OF last_step ON attempts BEGIN "
    "INSERT INTO chaos_track (job_id, fence, step, kept) VALUES (NEW.job_id, NEW.fence, NEW.last_step, 0); END",
    "CREATE TRIGGER chaos_kept AFTER UPDATE OF checkpoint ON jobs "
    "WHEN NEW.checkpoint IS NOT NULL AND NEW.checkpoint IS NOT OLD.checkpoint BEGIN "
    "INSERT INTO chaos_track (job_id, fence, step, kept) "
    "VALUES (NEW.id, NEW.fence, json_extract(NEW.checkpoint, '$.step'), 1); END",
)
_POSTGRES = (
    "CREATE TABLE chaos_ledger (number bigserial PRIMARY KEY, job_id text, fence bigint, was text, became text)",
    "CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO chaos_ledger (job_id, fence, was, became) VALUES (NEW.id, NEW.fence, OLD.status, NEW.status); "
    "RETURN NULL; END $$",
    "CREATE TRIGGER chaos_status AFTER UPDATE OF status ON jobs FOR EACH ROW EXECUTE FUNCTION chaos_note()",
    "CREATE TABLE chaos_track (number bigserial PRIMARY KEY, job_id text, fence bigint, step bigint, kept integer, "
    "at bigint DEFAULT (CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)))",
    "CREATE FUNCTION chaos_note_told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO chaos_track (job_id, fence, step, kept) VALUES (NEW.job_id, NEW.fence, NEW.last_step, 0); "
    "RETURN NULL; END $$",
    "CREATE TRIGGER chaos_told AFTER UPDATE OF last_step ON attempts FOR EACH ROW EXECUTE FUNCTION chaos_note_told()",
    "CREATE FUNCTION chaos_note_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO chaos_track (job_id, fence, step, kept) "
    "VALUES (NEW.id, NEW.fence, CAST(NEW.checkpoint ->> 'step' AS bigint), 1); "
    "RETURN NULL; END $$",
    "CREATE TRIGGER chaos_kept AFTER UPDATE OF checkpoint ON jobs FOR EACH ROW "
    "WHEN (NEW.checkpoint IS NOT NULL AND NEW.checkpoint IS DISTINCT FROM OLD.checkpoint) "
    "EXECUTE FUNCTION chaos_note_kept()",
)


def keep_ledger(database: Database) -> None:
    """Have the database itself write down every change of a job's status, every step that an attempt tells
    (``chaos_track``, ``kept`` 0) and every checkpoint that becomes a job's (``kept`` 1), with the moment."""
    statements = _POSTGRES if database.engine.dialect.name == "postgresql" else _SQLITE
    with database.session() as session:
        connection: Connection = session.connection()
        for statement in statements:
            connection.exec_driver_sql(statement)


@dataclass(frozen=True, slots=True)
class Together:
    """A time in which two processes trained one job, in seconds since 1970."""

    begin: float
    end: float
    workers: frozenset[int]  #: the process ids of the workers that had started them

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class Watch:
    """Looks at the processes of the machine: is one job trained by two of them at the same time?"""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._now: dict[str, Together] = {}
        self._over: list[tuple[str, Together]] = []

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            now = time.time()
            seen: defaultdict[str, list[int]] = defaultdict(list)
            for job, worker in self._training():
                seen[job].append(worker)
            twice = {job: frozenset(workers) for job, workers in seen.items() if len(workers) > 1}
            self._over += [(job, span) for job, span in self._now.items() if job not in twice]
            self._now = {
                job: Together(known.begin, now, known.workers | workers)
                for job, workers in twice.items()
                for known in (self._now.get(job, Together(now, now, workers)),)
            }

    @property
    def together(self) -> list[tuple[str, Together]]:
        """Each job that two processes trained at once, and when."""
        return [*self._over, *self._now.items()]

    def _training(self) -> Iterable[tuple[str, int]]:
        """Of every attempt that is trained, its job and the worker that started it. Its ranks, where it has some, are
        its trainer's children and count with it as one."""
        for process in psutil.process_iter():
            if is_trainer(process):
                try:
                    words = process.cmdline()
                    running, worker = process.status() != psutil.STATUS_STOPPED, process.ppid()
                except psutil.Error:
                    continue
                for word in words:
                    # …/scratch/{job}-{fence}/work
                    if running and word.startswith(str(self._scratch)):
                        yield Path(word).parent.name.rpartition("-")[0], worker


class Ghost:
    """Writes under fences that are over, as a worker does that wakes up late; every one of them has to be refused."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fences: dict[str, int] = {}
        self.refused = 0
        self.accepted: list[str] = []

    def look(self, fences: Mapping[str, int]) -> None:
        """Jobs with the fences that they have now: where one has risen, write under the one before."""
        for job_id, fence in fences.items():
            if 0 < self._fences.get(job_id, fence) < fence:
                self.haunt(Lease(job_id, fence - 1))
        self._fences = dict(fences)

    def haunt(self, held: Lease) -> None:
        """Try what a worker writes: what the job told, a checkpoint, an end."""
        writes = (
            lambda session: lease.record(session, held, Batch(stage="teacher", progress={"step": -1})),
            lambda session: lease.commit_checkpoint(session, held, {"step": -1, "files": {}}),
            lambda session: lease.hold(session, held),
        )
        for write in writes:
            try:
                with self._database.session() as session:
                    write(session)
                self.accepted.append(f"{held.job_id} under fence {held.fence}")
            except LeaseLost:
                self.refused += 1
            except Unavailable:
                continue
