"""The thread that finds what nobody else would: due jobs and offers whose bell was lost, jobs that dead workers
left behind."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select

from limbeck.errors import LimbeckError
from models.base import db_now
from models.db import Database
from models.host_place import HostPlace
from models.job import Job, JobStatus
from models.part import TeacherPart
from models.repository import offered, settling
from models.scratch import sweep
from models.settings import Settings
from models.storage import Storage
from worker.checkpoints import delete_checkpoints
from worker.lease import due, seconds_until
from worker.queue import Bell
from worker.service import Worker

_log = logging.getLogger(__name__)
_AFTER_A_LEASE = 0.2
_LOOK_BACK = timedelta(hours=1)
_SLACK = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Found:
    """What one look at the rows found."""

    due: int  #: jobs that could be claimed now
    settled: int  #: jobs that were ended for dead workers
    soonest: float | None  #: seconds until the next lease, or the wait before a retry, runs out
    offered: int = 0  #: parts of teachers' passes that nobody is at, and places of hosts


class Reconciler:
    """Looks at the rows every ``reconcile_min_seconds``, less often while there is nothing to do, and whenever a lease,
    or the wait before a retry, runs out."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, bell: Bell, worker: Worker) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._bell = bell
        self._worker = worker
        #: Jobs that were cancelled before that moment have nothing left in the storage.
        self._tidied: datetime | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._worker.attempted.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def look(self) -> Found:
        """Settle what dead workers left, and count what is to be done.

        Raises:
            Unavailable: the database is away.
        """
        with self._database.session() as session:
            settled = settling.settle_left_behind(session)
            waiting = session.scalar(select(func.count()).select_from(Job).where(due())) or 0
            upcoming = session.scalar(select(func.min(Job.lease_expires_at)).where(Job.lease_expires_at > db_now()))
            soonest = None if upcoming is None else seconds_until(session, upcoming)
            free = [offered.count(session, table)["free"] for table in (TeacherPart, HostPlace)]
        for job in settled:
            _log.warning("%s was left behind by its worker and is %s now", job.id, job.status)
            if job.checkpoint is None and job.status.terminal:
                self._forget(job.id)
        return Found(waiting, len(settled), soonest, sum(free))

    def _run(self) -> None:
        pause = self._settings.reconcile_min_seconds
        waited = False
        while not self._stopping.is_set():
            soonest = None
            try:
                found = self.look()
                soonest = found.soonest
                work = found.due + found.offered
                if work:
                    self._call_for_help(waited=waited)
                waited = work > 0
                pause = min(pause * 2, self._settings.reconcile_max_seconds)
                if work or found.settled:
                    pause = self._settings.reconcile_min_seconds
                self._tidy()
            except LimbeckError as error:
                _log.warning("the rows could not be looked at: %s", error)
                pause = self._settings.reconcile_min_seconds
            except Exception:  # the boundary: whatever one look met, the next one has to come
                _log.exception("a look at the rows failed")
            if self._worker.attempted.wait(pause if soonest is None else min(pause, soonest + _AFTER_A_LEASE)):
                self._worker.attempted.clear()
                pause = self._settings.reconcile_min_seconds

    def _call_for_help(self, *, waited: bool) -> None:
        self._bell.ring()
        if waited and self._worker.slots.free:
            # Due at the last look too, rung for, and here is a free slot: the broker does not deliver.
            self._worker.drain_in_background()

    def _tidy(self) -> None:
        """Clean up after killed processes, and after jobs that were cancelled while no worker held them."""
        assert self._settings.scratch_dir is not None  # Settings fills it in
        sweep(self._settings.scratch_dir)
        with self._database.reading() as session:
            now = session.scalar(select(db_now()))
            since = self._tidied or (now and now - _LOOK_BACK)
            ended = select(Job.id).where(Job.status == JobStatus.CANCELLED, Job.finished_at >= since)
            cancelled = session.scalars(ended).all()
        for job_id in cancelled:
            self._forget(job_id)
        # A cancel may commit a little after the moment that it carries.
        self._tidied = now and now - _SLACK

    def _forget(self, job_id: str) -> None:
        try:
            delete_checkpoints(self._storage, job_id)
        except (LimbeckError, OSError) as error:  # `limbeck gc` sweeps what is left
            _log.warning("%s: its checkpoints could not be deleted: %s", job_id, error)
