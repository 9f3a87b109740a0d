"""One run: start the stack, submit jobs, do the faults while they train, wait, judge."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from benchmarks.chaos.evidence import Ghost, Watch, keep_ledger
from benchmarks.chaos.faults import Faults, draw
from benchmarks.chaos.judgement import Judgement, judge
from benchmarks.chaos.plan import LEASE_SECONDS, Plan
from benchmarks.chaos.stack import Stack, running
from benchmarks.chaos.work import Submitter, upload, wait_until_ready
from limbeck.errors import Unavailable
from models.attempt import Attempt
from models.job import Job, JobStatus
from worker.lease import Lease

_TICK = 0.05
_LOOK_SECONDS = 0.5
_REFUSAL = "is no longer held under fence"
#: Jobs that are not done so long after the last fault will not be.
_PATIENCE_SECONDS = 240.0
#: Without an end of a job for so long the next fault comes nevertheless.
_STALLED_SECONDS = 25.0
_BURST = 6


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found."""

    plan: Plan
    judgement: Judgement
    faults: Mapping[str, int]
    refused_in_logs: int  #: times that a worker was told that the job is no longer its own
    refused_probes: int  #: writes under a fence that is over, tried by the benchmark
    accepted_probes: list[str]
    together_seconds: float  #: the longest for which two processes trained one job
    orphans: int
    dropped_bells: int
    repeated_submits: int
    fell: Mapping[str, int]
    minutes: float

    @property
    def failures(self) -> list[str]:
        """What must not happen, and did."""
        found = [f"lost: {one}" for one in self.judgement.lost]
        found += [f"twice: {job_id}: {'; '.join(signs)}" for job_id, signs in self.judgement.twice.items()]
        found += [f"a stale write went through: {one}" for one in self.accepted_probes]
        if self.judgement.jobs != self.plan.jobs:
            found.append(f"{self.plan.jobs} jobs were submitted, and there are {self.judgement.jobs}")
        if self.orphans:
            found.append(f"{self.orphans} processes were left")
        if sum(self.faults.values()) != self.plan.faults:
            found.append(f"only {sum(self.faults.values())} of {self.plan.faults} faults could be done")
        return found


def run(plan: Plan, *, keep: Path | None = None) -> Report:
    """Run it, from the main thread; nothing is left running afterwards.

    Args:
        keep: a folder for data and logs, to look into afterwards.

    Raises:
        tests.services.ServiceMissing: the machine has no such server.
    """
    with tempfile.TemporaryDirectory(prefix="limbeck-chaos-") as temporary:
        folder = keep or Path(temporary)
        with running(plan, folder) as stack:
            wait_until_ready(stack.url)
            keep_ledger(stack.database)
            return _Run(stack).run()


class _Run:
    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._plan = stack.plan
        self._chance = random.Random(stack.plan.seed)
        self._faults = Faults(stack, self._chance)
        self._left = draw(stack.plan, self._chance)
        assert stack.settings.scratch_dir is not None
        self._watch = Watch(stack.settings.scratch_dir)
        self._ghost = Ghost(stack.database)
        self._submitter = Submitter(stack.url, upload(stack.url, stack.folder / "upload", stack.plan.epochs))
        self._began = time.monotonic()
        self._look_at = 0.0
        self._fault_at = 0.0
        self._ended = 0
        self._asked = 0
        self._progress_at = self._began

    def run(self) -> Report:
        self._submitter.start()
        self._watch.start()
        deadline = self._began + 3600
        while not self._done() and time.monotonic() < deadline:
            self._faults.tick()
            if time.monotonic() >= self._look_at:
                self._look()
            if self._left:
                if self._ended < self._plan.jobs:
                    deadline = time.monotonic() + _PATIENCE_SECONDS
                self._maybe_fault()
            time.sleep(_TICK)
        # A worker that was stopped a moment ago may still wake up and write.
        self._settle(2 * LEASE_SECONDS)
        self._submitter.close()
        self._watch.close()
        self._stack.shut_down()
        return self._report()

    def _done(self) -> bool:
        return not self._left and not self._faults.pending and self._ended >= self._plan.jobs

    def _settle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._faults.tick()
            time.sleep(_TICK)

    def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_SECONDS
        if self._submitter.refused:
            raise RuntimeError(f"the API refused a job: {self._submitter.refused}")
        try:
            with self._stack.database.reading() as session:
                rows = session.execute(select(Job.id, Job.status, Job.fence)).all()
        except Unavailable:
            return
        ended = sum(JobStatus(status).terminal for _, status, _ in rows)
        if ended > self._ended:
            self._ended, self._progress_at = ended, time.monotonic()
        if self._plan.fence:
            self._ghost.look({job_id: fence for job_id, _, fence in rows})
        self._ask_for_more()

    def _ask_for_more(self) -> None:
        """Bursts: now jobs wait for a slot, now a free slot waits for the job that somebody loses."""
        if self._asked - self._ended <= 2 and self._asked < self._plan.jobs:
            self._asked = min(self._plan.jobs, self._asked + self._chance.randint(2, _BURST))
            self._submitter.ask_for(self._asked)

    def _maybe_fault(self) -> None:
        now = time.monotonic()
        done = self._plan.faults - len(self._left)
        # Spread over the jobs: neither are there none left when the last fault comes, nor the other way round.
        in_step = self._ended >= (done - 4) * self._plan.jobs / self._plan.faults
        stalled = now - max(self._progress_at, self._fault_at) > _STALLED_SECONDS
        if now < self._fault_at or not (in_step or stalled):
            return
        for kind in self._left:
            if self._faults.do(kind):
                self._left.remove(kind)
                self._say(f"{kind}; {self._ended} of {self._plan.jobs} jobs have ended")
                break
        self._fault_at = now + self._chance.uniform(1, 5)

    def _report(self) -> Report:
        database = self._stack.database
        if self._plan.fence:
            with database.reading() as session:
                held = [Lease(*row) for row in session.execute(select(Attempt.job_id, Attempt.fence)).all()]
            for one in held:
                self._ghost.haunt(one)
        left = self._stack.leftovers()
        for process in left:
            self._say(f"left: {process}")
        logs = "".join(program.log.read_text(errors="replace") for program in self._stack.workers)
        return Report(
            plan=self._plan,
            judgement=judge(database, self._submitter.accepted, self._watch.together, self._faults.outages),
            faults=dict(self._faults.done),
            refused_in_logs=logs.count(_REFUSAL),
            refused_probes=self._ghost.refused,
            accepted_probes=self._ghost.accepted,
            together_seconds=max((span.seconds for _, span in self._watch.together), default=0.0),
            orphans=self._faults.orphans + len(left),
            dropped_bells=self._faults.dropped,
            repeated_submits=self._submitter.repeated,
            fell=dict(self._faults.fell),
            minutes=(time.monotonic() - self._began) / 60,
        )

    def _say(self, line: str) -> None:
        print(f"[{self._plan.name} {time.monotonic() - self._began:5.0f} s] {line}", file=sys.stderr, flush=True)
