"""Who may claim, and who may write: on both databases, by the database's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.job_schemas import JobView
from limbeck.errors import LeaseLost
from models.db import Database
from models.job import Job, JobStatus
from models.model import ModelKind
from models.repository import catalogue, jobs, settling, telemetry
from models.repository.settling import Fault
from models.repository.telemetry import Point
from tests.worker.conftest import claim_one, expire, read, submit
from worker import endings, lease
from worker.endings import NewModel, Outcome
from worker.lease import Claim, Holder, Lease, Wish, seconds_until
from worker.telemetry import Batch, Note

CHECKPOINT = {
    "version": 1,
    "step": 7,
    "files": {"a": {"sha256": "0" * 64, "bytes": 1, "key": "jobs/x/checkpoints/1/0"}},
}
OUTCOME = Outcome(
    [NewModel("mdl_1", ModelKind.STUDENT, (), {"task": "sequence_classification", "labels": ["a", "b"], "layers": 2})],
    {"model_id": "mdl_1", "verdict": {"passed": True, "reasons": []}},
    {"version": 1},
)
FAULT = Fault("killed", "The training process was killed.", True)


def taken(database: Database, **how: Any) -> Claim:
    claimed = claim_one(database, **how)
    assert claimed is not None
    return claimed


def let_it_expire(database: Database) -> Claim:
    """A job whose worker said nothing for longer than its lease."""
    submit(database)
    held = taken(database)
    expire(database, held.job.id)
    return held


def test_a_claim_takes_the_row_once(either: Database) -> None:
    job = submit(either)
    first = taken(either)
    assert (first.job.id, first.job.status, first.job.attempt, first.lease.fence) == (job.id, JobStatus.RUNNING, 1, 1)
    assert claim_one(either) is None
    with either.reading() as session:
        (attempt,) = telemetry.attempts(session, job.id)
        kinds = [event.kind for event in telemetry.events_after(session, job.id, 0, 10)]
    assert (attempt.worker, attempt.host, attempt.pid, attempt.ended_at) == ("test:1", "test", 1, None)
    assert kinds == ["job.queued", "job.started"]


def test_the_next_job_is_by_priority_then_by_owner_then_by_age(either: Database) -> None:
    """Guards against a claim whose order differs from the position that users are shown."""
    crowd = [submit(either, owner="crowd") for _ in range(3)]
    single = submit(either, owner="single")
    urgent = submit(either, owner="crowd", priority=5)
    order = [taken(either).job.id for _ in range(4)]
    assert order == [urgent.id, single.id, crowd[0].id, crowd[1].id]


def test_a_worker_claims_only_what_its_gpus_serve(either: Database) -> None:
    large = submit(either, gpus=2, priority=9)
    small = submit(either)
    assert taken(either, gpus=1).job.id == small.id
    assert claim_one(either, gpus=1) is None
    assert taken(either, gpus=2).job.id == large.id


def test_freed_gpus_are_kept_for_the_next_job_that_needs_several(either: Database) -> None:
    """Guards against a job on two GPUs that never begins: whenever one is free, a later job for one GPU takes it."""
    larger = submit(either, gpus=3, priority=9)
    ranks = submit(either, config={"training": {"devices": 2}}, priority=5)
    small = submit(either)
    assert claim_one(either, gpus=1, most=2) is None
    assert taken(either, gpus=2, most=2).job.id == ranks.id
    # What no GPUs of this worker's could serve holds nothing up.
    assert taken(either, gpus=1, most=2).job.id == small.id
    assert taken(either, gpus=3, most=4).job.id == larger.id


def test_where_there_are_gpus_each_device_is_one(either: Database) -> None:
    """Guards against ranks that share a GPU, which NCCL refuses, because the job left the GPUs open."""
    ranks = submit(either, config={"training": {"devices": 2}})
    assert claim_one(either, gpus=1) is None
    claimed = taken(either, gpus=3)
    assert (claimed.job.id, claimed.devices) == (ranks.id, 2)
    on_cores = submit(either, config={"training": {"devices": 2}})
    assert taken(either, gpus=0).job.id == on_cores.id


def test_each_of_several_hosts_has_its_share_of_the_gpus(either: Database) -> None:
    """Guards against a training over two hosts that waits for one host with all of its GPUs."""
    spread = submit(either, config={"training": {"devices": 4, "hosts": 2}}, gpus=2)
    assert claim_one(either, gpus=1) is None
    claimed = taken(either, gpus=2)
    assert (claimed.job.id, claimed.devices) == (spread.id, 2)


def test_an_expired_lease_is_claimed_again_and_the_ledger_says_why(either: Database) -> None:
    held = let_it_expire(either)
    with either.session() as session:
        lease.commit_checkpoint(session, held.lease, CHECKPOINT)
    again = taken(either, holder=Holder("other:2", "other", 2))
    assert (again.job.id, again.job.attempt, again.lease.fence) == (held.job.id, 2, 2)
    assert again.job.checkpoint == CHECKPOINT
    assert again.job.started_at == held.job.started_at, "when the first attempt did"
    with either.reading() as session:
        first, second = telemetry.attempts(session, held.job.id)
        kinds = [event.kind for event in telemetry.events_after(session, held.job.id, 0, 10)]
    assert (first.outcome, first.reason, first.last_step) == ("lost", "worker_lost", 7)
    assert (second.number, second.resumed_from_step, second.outcome) == (2, 7, None)
    assert kinds == ["job.queued", "job.started", "checkpoint.saved", "attempt.lost", "job.started"]


def test_a_checkpoint_does_not_take_back_what_the_ledger_says_was_done(either: Database) -> None:
    """Guards against a ledger that hides repeated steps: while a checkpoint is stored, the job trains on."""
    submit(either)
    held = taken(either)
    with either.session() as session:
        lease.record(session, held.lease, Batch(progress={"step": 9, "percent": 1.0}))
        lease.commit_checkpoint(session, held.lease, CHECKPOINT)
    with either.reading() as session:
        assert [one.last_step for one in telemetry.attempts(session, held.job.id)] == [9]


def test_a_renewed_lease_is_not_claimed(either: Database) -> None:
    submit(either)
    held = taken(either, lease_seconds=0.1)
    with either.session() as session:
        assert lease.beat(session, held.lease, 60) is Wish.GO_ON
    time.sleep(0.15)
    assert claim_one(either) is None


WRITES: dict[str, Callable[[Session, Lease], object]] = {
    "beat": lambda session, held: lease.beat(session, held, 60),
    "wish": lease.wish,
    "stage": lambda session, held: lease.record(session, held, Batch(stage="teacher")),
    "progress": lambda session, held: lease.record(session, held, Batch(progress={"step": 3})),
    "events": lambda session, held: lease.record(session, held, Batch(events=[Note("x", "y", {})])),
    "metrics": lambda session, held: lease.record(session, held, Batch(points=[Point("loss", 1, 0.5)])),
    "log": lambda session, held: lease.record(session, held, Batch(log="words")),
    "checkpoint": lambda session, held: lease.commit_checkpoint(session, held, CHECKPOINT),
    "succeed": lambda session, held: endings.succeed(session, held, OUTCOME),
    "stop": endings.stop,
    "fail": lambda session, held: endings.fail(session, held, FAULT, retry_seconds=0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_every_late_write_is_refused_and_changes_nothing(
    either: Database, write: Callable[[Session, Lease], object]
) -> None:
    """Guards against a worker that was stopped past its lease and then finishes, or fails, its successor's job."""
    late = let_it_expire(either)
    taken(either)
    before = everything(either, late.job.id)
    with pytest.raises(LeaseLost), either.session() as session:
        write(session, late.lease)
    assert everything(either, late.job.id) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_every_write_after_the_end_is_refused(either: Database, write: Callable[[Session, Lease], object]) -> None:
    """Guards against a second ending, e.g. when the answer to the first commit was lost on its way."""
    submit(either)
    held = taken(either)
    with either.session() as session:
        assert endings.succeed(session, held.lease, OUTCOME) is JobStatus.SUCCEEDED
    before = everything(either, held.job.id)
    with pytest.raises(LeaseLost), either.session() as session:
        write(session, held.lease)
    assert everything(either, held.job.id) == before


def everything(database: Database, job_id: str) -> list[Any]:
    with database.reading() as session:
        job = jobs.get(session, job_id)
        return [
            {column.name: getattr(job, key) for key, column in job.__mapper__.columns.items()},
            [event.kind for event in telemetry.events_after(session, job_id, 0, 100)],
            telemetry.metrics(session, job_id, 10),
            list(telemetry.read_log(session, job_id)),
            [(one.fence, one.outcome, one.last_step) for one in telemetry.attempts(session, job_id)],
            [model.id for model in catalogue.models_of_job(session, job_id)],
        ]


def test_success_writes_the_models_and_the_end_at_once(either: Database) -> None:
    job = submit(either)
    held = taken(either)
    with either.session() as session:
        lease.commit_checkpoint(session, held.lease, CHECKPOINT)
        lease.record(session, held.lease, Batch(progress={"step": 9, "percent": 97.0}))
    with either.session() as session:
        assert endings.succeed(session, held.lease, OUTCOME) is JobStatus.SUCCEEDED
    ended = read(either, job.id)
    assert (ended.result, ended.checkpoint, ended.worker, ended.lease_expires_at) == (OUTCOME.result, None, None, None)
    assert ended.finished_at is not None
    assert ended.progress is not None
    assert ended.progress["percent"] == 100.0
    with either.reading() as session:
        model = catalogue.get_model(session, "mdl_1")
        assert (model.job_id, model.kind, model.name) == (job.id, ModelKind.STUDENT, "a job")
        assert (model.teacher, model.dataset, model.method) == ("builtin:minilm-l6", "builtin:stdlib-docstrings", "kd")
        assert [(one.outcome, one.last_step) for one in telemetry.attempts(session, job.id)] == [("succeeded", 9)]


def test_a_job_that_ends_before_it_told_of_progress_can_be_read(either: Database) -> None:
    """Guards against a 500 for that job, and for every page of jobs that it is on."""
    submit(either)
    held = taken(either)
    with either.session() as session:
        endings.succeed(session, held.lease, OUTCOME)
    assert JobView.of(read(either, held.job.id), None).progress is None


def test_a_job_with_the_longest_name_gets_its_student_and_its_baseline(either: Database) -> None:
    """Guards against an end that PostgreSQL refuses, and so against a job that is trained three times and then lost."""
    submit(either, name="n" * 200)
    held = taken(either)
    facts = {"task": "sequence_classification", "labels": ["a", "b"], "layers": 2}
    models = [NewModel("mdl_1", ModelKind.STUDENT, (), facts), NewModel("mdl_2", ModelKind.BASELINE, (), facts)]
    with either.session() as session:
        endings.succeed(session, held.lease, Outcome(models, OUTCOME.result, {}))
    with either.reading() as session:
        names = {model.kind: model.name for model in catalogue.models_of_job(session, held.job.id)}
    assert names == {ModelKind.STUDENT: "n" * 200, ModelKind.BASELINE: "n" * 189 + " (baseline)"}


def test_a_retryable_fault_goes_back_to_the_queue_until_the_attempts_are_used_up(either: Database) -> None:
    """Guards against an endless loop, and against losing the checkpoint to a fault that may pass."""
    job = submit(either, max_attempts=2)
    held = taken(either)
    with either.session() as session:
        lease.commit_checkpoint(session, held.lease, CHECKPOINT)
        assert endings.fail(session, held.lease, FAULT, retry_seconds=60) is JobStatus.QUEUED
    assert claim_one(either) is None, "the wait before a retry was not kept"
    expire(either, job.id)
    held = taken(either)
    with either.session() as session:
        assert endings.fail(session, held.lease, FAULT, retry_seconds=0) is JobStatus.FAILED
    ended = read(either, job.id)
    assert ended.error == FAULT.as_error()
    assert ended.checkpoint == CHECKPOINT
    assert claim_one(either) is None


def test_each_retry_waits_three_times_as_long_as_the_one_before(either: Database) -> None:
    """Guards a machine in trouble against jobs that come back at once, all of them."""
    job = submit(either, max_attempts=4)
    waits = []
    for _ in range(3):
        held = taken(either)
        with either.session() as session:
            endings.fail(session, held.lease, FAULT, retry_seconds=100)
            session.flush()
            until = jobs.get(session, job.id).lease_expires_at
            assert until is not None
            waits.append(lease.seconds_until(session, until))
        expire(either, job.id)
    assert waits == pytest.approx([100, 300, 900], abs=20)


def test_the_wait_before_a_retry_stays_within_an_hour(either: Database) -> None:
    """Each loss counts as an attempt: behind ten workers that were taken away a full disk would cost a week."""
    submit(either, max_attempts=100)
    held = taken(either)
    with either.session() as session:
        session.execute(update(Job).values(attempt=60))
        assert endings.fail(session, held.lease, FAULT, retry_seconds=10) is JobStatus.QUEUED
    with either.reading() as session:
        due_at = session.scalar(select(Job.lease_expires_at))
        assert due_at is not None
        assert 3500 < seconds_until(session, due_at) <= 3600


def test_a_fault_that_will_not_pass_fails_the_job_at_once(either: Database) -> None:
    """Guards its checkpoint, too: what is kept can be resumed, only to fail again, and lies in the storage until
    then."""
    job = submit(either)
    held = taken(either)
    with either.session() as session:
        lease.commit_checkpoint(session, held.lease, CHECKPOINT)
        assert endings.fail(session, held.lease, Fault("diverged", "NaN", False), retry_seconds=0) is JobStatus.FAILED
    ended = read(either, job.id)
    assert ended.error == {"code": "diverged", "message": "NaN", "retryable": False}
    assert ended.checkpoint is None


@pytest.mark.parametrize(("retryable", "expected"), [(True, JobStatus.PAUSED), (False, JobStatus.FAILED)])
def test_a_fault_on_the_way_to_a_pause_pauses_where_it_may_pass(
    either: Database, retryable: bool, expected: JobStatus
) -> None:
    """Guards against a job that is queued again although its user wants it to stand still, and one that waits to be
    resumed although it cannot go on."""
    job = submit(either)
    held = taken(either)
    with either.session() as session:
        lease.commit_checkpoint(session, held.lease, CHECKPOINT)
        jobs.request_pause(session, job.id)
    with either.session() as session:
        assert endings.fail(session, held.lease, Fault("x", "y", retryable), retry_seconds=0) is expected
    assert read(either, job.id).checkpoint == (CHECKPOINT if retryable else None)
    assert claim_one(either) is None


def test_handing_back_and_pausing_cost_no_attempt(either: Database) -> None:
    """Guards against a job that fails because its worker was deployed three times."""
    job = submit(either, max_attempts=1)
    for _ in range(3):
        with either.session() as session:
            assert endings.stop(session, taken(either).lease) is JobStatus.QUEUED
    held = taken(either)
    with either.session() as session:
        jobs.request_pause(session, job.id)
        assert lease.wish(session, held.lease) is Wish.PAUSE
    with either.session() as session:
        assert endings.stop(session, held.lease) is JobStatus.PAUSED
        jobs.resume(session, job.id)
    held = taken(either)
    assert (held.job.attempt, held.lease.fence) == (1, 5)
    with either.reading() as session:
        outcomes = [one.outcome for one in telemetry.attempts(session, job.id)]
    assert outcomes == ["handed_back", "handed_back", "handed_back", "paused", None]


@pytest.mark.parametrize("ending", ["succeed", "stop", "fail"])
def test_a_job_that_is_being_cancelled_ends_as_cancelled(either: Database, ending: str) -> None:
    job = submit(either)
    held = taken(either)
    with either.session() as session:
        jobs.request_cancel(session, job.id)
    with either.session() as session:
        assert WRITES[ending](session, held.lease) is JobStatus.CANCELLED
    with either.reading() as session:
        assert catalogue.models_of_job(session, job.id) == []


@pytest.mark.parametrize(
    ("asked", "expected"), [(jobs.request_cancel, JobStatus.CANCELLED), (jobs.request_pause, JobStatus.PAUSED)]
)
def test_what_a_dead_worker_was_asked_is_settled_for_it(
    either: Database, asked: Callable[[Session, str], object], expected: JobStatus
) -> None:
    """Guards against a job that is "cancelling" for ever."""
    submit(either)
    held = taken(either)
    with either.session() as session:
        asked(session, held.job.id)
        assert settling.settle_left_behind(session) == []
    expire(either, held.job.id)
    assert claim_one(either) is None
    with either.session() as session:
        assert [job.status for job in settling.settle_left_behind(session)] == [expected]
    with pytest.raises(LeaseLost), either.session() as session:
        endings.succeed(session, held.lease, OUTCOME)


def test_a_job_whose_workers_all_died_fails_as_worker_lost(either: Database) -> None:
    job = submit(either, max_attempts=2)
    for _ in range(2):
        taken(either)
        expire(either, job.id)
    assert claim_one(either) is None
    with either.session() as session:
        assert [one.id for one in settling.settle_left_behind(session)] == [job.id]
    ended = read(either, job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert (ended.error["code"], ended.error["retryable"]) == ("worker_lost", True)
