"""One attempt, from the claimed row to its end: fetch, run the trainer, watch, bring the results in, settle."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from limbeck.errors import Interrupted, LeaseLost, LimbeckError, RankLost, StorageFull, Unavailable
from limbeck.hosts import Invitation
from limbeck.offer import PARTS
from models.db import Database
from models.job import Job, JobStatus
from models.repository import telemetry as stored_telemetry
from models.repository.settling import Fault
from models.settings import Settings
from models.storage import Storage
from models.storage.base import out_of_room
from worker import endings, materials
from worker.answers import AnswersPorter
from worker.checkpoints import Courier, delete_checkpoints
from worker.faults import fault_of, oom_kills, stall_of
from worker.harvest import harvest
from worker.heart import Heart
from worker.invitations import Invitations, own_address
from worker.lease import Claim, Wish
from worker.offers import LOOK_SECONDS, Offers
from worker.patience import Patience
from worker.process import TrainerProcess
from worker.scratch import child_environment, scratch
from worker.slots import Place
from worker.telemetry import Telemetry
from worker.trainer import ORDER

_log = logging.getLogger(__name__)
TRAINER = (sys.executable, "-m", "worker.trainer")
_TICK = 0.2
_CANCEL_GRACE = 3.0
_RETRY_PAUSE = 0.5


@dataclass(slots=True)
class Shutdown:
    """What the worker tells its runners when it has to end."""

    #: Children write their checkpoint, and jobs are handed back.
    wanted: threading.Event = field(default_factory=threading.Event)
    #: No more time: children are killed, jobs are handed back at their last checkpoint.
    hurry: threading.Event = field(default_factory=threading.Event)
    #: When the first of them was wanted, on the monotonic clock.
    asked_at: float = math.inf

    def ask(self) -> None:
        """In order when called first, in a hurry when called again. Safe in a signal handler."""
        if self.wanted.is_set():
            self.hurry.set()
        else:
            self.asked_at = time.monotonic()
        self.wanted.set()


class Runner:
    """Runs claimed jobs; one object serves all slots of a worker.

    Args:
        command: the trainer, for tests that need another one.
        ring: says that there is something to do for others.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        shutdown: Shutdown,
        command: Sequence[str] = TRAINER,
        ring: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.storage = storage
        self.shutdown = shutdown
        self.command = command
        self.ring = ring

    def run(self, claim: Claim, place: Place, claimed_at: float) -> None:
        """Run one attempt to its end, whatever that is.

        Args:
            claimed_at: the monotonic clock before the claim was sent.
        """
        job_id = claim.lease.job_id
        try:
            status = _Attempt(self, claim, place, claimed_at).run()
            _log.info("%s is %s", job_id, status)
            if status.terminal:
                self._drop_checkpoints(job_id)
        except LeaseLost as loss:
            _log.warning("the attempt at %s ends without a word: %s", job_id, loss)

    def _drop_checkpoints(self, job_id: str) -> None:
        try:
            with self.database.reading() as session:
                job = session.get(Job, job_id)
            if job is None or job.checkpoint is None:  # somebody may have deleted it as soon as it had ended
                delete_checkpoints(self.storage, job_id)
        except (LimbeckError, OSError) as error:  # `limbeck gc` sweeps what is left
            _log.warning("%s: its checkpoints could not be deleted: %s", job_id, error)


class _Attempt:
    """The state of one attempt. ``run`` stays in one thread; the heart and the courier have theirs."""

    def __init__(self, runner: Runner, claim: Claim, place: Place, claimed_at: float) -> None:
        self._settings = runner.settings
        self._database = runner.database
        self._storage = runner.storage
        self._shutdown = runner.shutdown
        self._command = runner.command
        self._lease, self._job = claim.lease, claim.job
        self._place = place
        assert self._settings.scratch_dir is not None
        self._folder = self._settings.scratch_dir / f"{self._lease.job_id}-{self._lease.fence}"
        self._work = self._folder / "work"
        self._margin = min(5.0, self._settings.lease_seconds / 10)
        self._telemetry = Telemetry(self._job.provenance, self._settings.max_log_bytes)
        self._heart = Heart(self._database, self._lease, self._telemetry, self._settings, claimed_at)
        self._courier = Courier(self._storage, self._database, self._lease, self._work / "state", self._job.checkpoint)
        self._answers = self._settings.scratch_dir / "teacher-answers"
        self._porter = AnswersPorter(self._storage, self._answers, self._folder)
        pause = min(LOOK_SECONDS, self._settings.heartbeat_seconds / 2)
        self._offers = Offers(self._storage, self._database, self._lease, self._work / PARTS, runner.ring, pause)
        self._invitations = Invitations(self._database, self._lease, bool(place.gpus), runner.ring, pause)
        self._last: dict[str, Any] = {}
        #: When the trainer last said something, on the monotonic clock.
        self._heard = 0.0
        self._stalled = False

    def run(self) -> JobStatus:
        self._heart.start()
        self._courier.start()
        self._porter.start()
        try:
            settle = self._work_out()
        except LeaseLost:
            self._heart.stop()
            raise
        finally:
            self._courier.abandon()
            self._porter.finish(lambda: False)
        self._heart.stop()
        return self._write(settle)

    def _work_out(self) -> Callable[[Session], JobStatus]:
        """Do the work; how to settle it.

        Raises:
            LeaseLost
        """
        try:
            with scratch(self._folder):
                order = self._prepare()
                exit_code, oom_killed = self._train(order)
                self._porter.finish(lambda: self._heart.holds and not self._must_stop())
                self._require_lease()
                if self._heart.wish is not Wish.CANCEL:
                    self._courier.finish(self._until_brought(), self._overdue)
                return self._judge(exit_code, oom_killed)
        except LeaseLost:
            raise
        except Interrupted:
            return self._stopped()
        except Exception as error:  # the boundary: whatever happens, the row gets an end
            failure = out_of_room(error, "working on the job") if isinstance(error, OSError) else error
            if isinstance(failure, LimbeckError):
                return self._failed(Fault(failure.code, failure.message, failure.retryable))
            return self._broken(error)

    def _prepare(self) -> dict[str, Any]:
        """Fetch what the job needs; the trainer's order.

        Raises:
            LeaseLost, Interrupted
        """
        patiently = Patience(self._settings.lease_seconds, self._require_wanted)
        self._telemetry.spend_log(patiently(self._log_size))
        place = self._folder / "sources"
        sources, needed = patiently(lambda: materials.sources_of(self._job.config, self._database, place))
        materials.fetch(self._storage, needed, patiently)
        state = self._work / "state"
        state.mkdir(parents=True)
        if self._job.checkpoint is not None:
            damage = materials.fetch_checkpoint(self._storage, self._job.checkpoint, state, patiently)
            if damage is not None:
                self._courier.forget()
                self._telemetry.event(
                    "checkpoint.damaged", f"The checkpoint cannot be used, starting over: {damage}", {}
                )
        return {
            "config": self._job.config,
            "sources": {reference: str(folder) for reference, folder in sources.items()},
            "checkpoint_seconds": self._settings.checkpoint_seconds,
            "expected": materials.expected_of(self._job.provenance),
            "micro_batches": materials.micro_batches_of(self._job.provenance),
            "teacher_cache": self._teacher_cache(),
            "hosts": {"address": own_address(self._settings), "seconds": self._settings.hosts_wait_seconds},
        }

    def _log_size(self) -> int:
        """Of what earlier attempts have printed."""
        with self._database.reading() as session:
            return stored_telemetry.log_size(session, self._lease.job_id)

    def _teacher_cache(self) -> dict[str, Any] | None:
        limit = round(self._settings.teacher_cache_gb * 1000**3)
        share = self._settings.teacher_share_seconds or None
        return {"folder": str(self._answers), "bytes": limit, "share_seconds": share} if limit else None

    def _train(self, order: dict[str, Any]) -> tuple[int, bool]:
        """Run the trainer to its end; its exit code, and whether the kernel killed for memory meanwhile."""
        order["lease_seconds"] = self._heart.deadline - time.monotonic()
        (self._work / ORDER).write_text(json.dumps(order), encoding="utf-8")
        kills = oom_kills()
        self._heard = time.monotonic()
        environment = child_environment(self._settings, self._place, self._folder)
        process = TrainerProcess(self._command, self._work, environment, self._hear, self._telemetry.log)
        self._offers.start()
        try:
            self._watch(process)
        finally:
            exit_code = process.finish()
            self._offers.finish()
            self._invitations.finish()
        return exit_code, oom_kills() > kills

    def _watch(self, process: TrainerProcess) -> None:
        told = self._heart.deadline
        kill_at: float | None = None
        while process.pump(_TICK):
            now = time.monotonic()
            if self._heart.lost or now > self._heart.deadline - self._margin:
                raise LeaseLost(f"The lease of {self._lease.job_id} could not be renewed; the attempt is stopped.")
            if self._heart.deadline != told:
                told = self._heart.deadline
                process.tell("lease", seconds=told - now)
            for key in self._porter.arrived():
                process.tell("answers", key=key)
            if kill_at is None and (self._must_stop() or self._courier.full):
                process.ask_to_stop()
                kill_at = now + (_CANCEL_GRACE if self._heart.wish is Wish.CANCEL else self._settings.grace_seconds)
            if kill_at is not None and (now > kill_at or self._shutdown.hurry.is_set()):
                return
            if now - self._heard > self._settings.stall_seconds:
                self._stalled = True
                return
            if self._heart.wish is Wish.CANCEL and kill_at is not None:
                kill_at = min(kill_at, now + _CANCEL_GRACE)

    def _until_brought(self) -> Callable[[], bool]:
        """Whether to wait for a storage or a database that is away, so that no step on this disk is trained again.

        A student that is there already makes its checkpoint worth one try; nothing is worth more than a lease's time,
        or what is left of a shutdown's.
        """
        end = time.monotonic() + self._settings.lease_seconds

        def go_on() -> bool:
            self._require_lease()
            trained = self._last.get("type") == "result"
            cancelled = self._heart.wish is Wish.CANCEL
            return not (trained or cancelled or self._overdue()) and time.monotonic() < end

        return go_on

    def _judge(self, exit_code: int, oom_killed: bool) -> Callable[[Session], JobStatus]:
        """From how the trainer ended to how the attempt does."""
        if self._courier.full is not None:
            return self._failed(Fault(StorageFull.code, self._courier.full.message, True))
        if self._last.get("type") == "result":
            self._telemetry.provenance(self._last["provenance"])
            patiently = Patience(self._settings.lease_seconds, self._require_finishing)
            outcome = harvest(self._storage, self._lease, self._work, self._last, patiently)
            return lambda session: endings.succeed(session, self._lease, outcome)
        if self._last.get("type") == "error":
            if self._last["code"] == RankLost.code and oom_killed:
                return self._failed(fault_of(-signal.SIGKILL, oom_killed=True))
            return self._failed(Fault(self._last["code"], self._last["message"], self._last["retryable"]))
        if self._must_stop() or self._last.get("type") == "interrupted":
            return self._stopped()
        if self._stalled:
            return self._failed(stall_of(self._settings.stall_seconds))
        return self._failed(fault_of(exit_code, oom_killed=oom_killed))

    def _stopped(self) -> Callable[[Session], JobStatus]:
        return lambda session: endings.stop(session, self._lease)

    def _failed(self, fault: Fault) -> Callable[[Session], JobStatus]:
        return lambda session: endings.fail(session, self._lease, fault, retry_seconds=self._settings.retry_seconds)

    def _broken(self, error: Exception) -> Callable[[Session], JobStatus]:
        """What nobody has thought of: it stands in the worker's log, and ends the attempt."""
        _log.error("the attempt at %s broke", self._lease.job_id, exc_info=error)
        first = (str(error).splitlines() or [""])[0]  # a database's error goes on with the whole statement
        what = f"The worker itself failed: {type(error).__name__}: {first}"
        return self._failed(Fault("internal_error", what, True))

    def _write(self, settle: Callable[[Session], JobStatus]) -> JobStatus:
        """Write the last of what the job told and its end, trying for as long as the lease and a shutdown last.

        Raises:
            LeaseLost
        """
        refused = False
        while True:
            try:
                self._heart.flush()
                with self._database.session() as session:
                    return settle(session)
            except (Unavailable, StorageFull) as error:
                _log.warning("%s: its end cannot be written yet: %s", self._lease.job_id, error)
                if not self._heart.holds or self._overdue():
                    raise LeaseLost(
                        f"The database stayed away for longer than there is time for the end of {self._lease.job_id}."
                    ) from error
                time.sleep(_RETRY_PAUSE)
            except LeaseLost:
                raise
            except Exception as error:  # an end that the database refuses must not leave the row without one
                if refused:
                    raise
                settle, refused = self._broken(error), True

    def _hear(self, line: dict[str, Any]) -> None:
        self._heard = time.monotonic()
        match line:
            case {"type": "alive"}:
                pass
            case {"type": "hosts_wanted", "invitation": dict(invitation)}:
                self._invitations.invite(Invitation(**invitation))
            case {"type": "hosts_settled", "workers": list(workers)}:
                self._invitations.settle(workers)
            case {"type": "stage", "stage": str(stage)}:
                self._telemetry.stage(stage)
            case {"type": "progress", "progress": dict(progress)}:
                self._telemetry.progress(progress)
            case {"type": "metrics", "step": int(step), "values": dict(values)}:
                self._telemetry.metrics(step, {series: value for series, value in values.items() if value is not None})
            case {"type": "event", "kind": str(kind), "message": str(message), "data": dict(data)}:
                self._telemetry.event(kind, message, data)
            case {"type": "provenance", "facts": dict(facts)}:
                self._telemetry.provenance(facts)
            case {"type": "checkpoint"}:
                self._courier.notice()
            case {"type": "answers_wanted", "key": str(key)}:
                self._porter.wanted(key)
            case {"type": "answers_used", "key": str(key)}:
                self._porter.used(key)
            case {"type": "result" | "interrupted" | "error"}:
                self._last = line
            case _:
                self._telemetry.log(f"[the trainer said what nobody understands: {str(line)[:200]}]\n")

    def _must_stop(self) -> bool:
        return self._heart.wish is not Wish.GO_ON or self._shutdown.wanted.is_set()

    def _overdue(self) -> bool:
        """Whether the worker shuts down, and there is no more time for anything but handing the job back."""
        late = time.monotonic() > self._shutdown.asked_at + self._settings.grace_seconds
        return late or self._shutdown.hurry.is_set()

    def _require_wanted(self) -> None:
        self._require_lease()
        if self._must_stop():
            raise Interrupted("The attempt is to stop before it has begun to train.")

    def _require_finishing(self) -> None:
        """As above for a student that is there already: a worker that shuts down takes the time to bring it in."""
        self._require_lease()
        if self._heart.wish is not Wish.GO_ON or self._overdue():
            raise Interrupted("The student is made again from the last checkpoint, if somebody wants it.")

    def _require_lease(self) -> None:
        if not self._heart.holds:
            raise LeaseLost(f"The lease of {self._lease.job_id} is over.")
