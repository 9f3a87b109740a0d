"""The life of a job's row, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.orm import Session

from limbeck.errors import Conflict, IdempotencyKeyReused, InvalidInput, NotFound
from models.db import Database
from models.job import Job, JobStatus
from models.model import ModelKind
from models.repository import catalogue, jobs, overview, telemetry
from models.repository.catalogue import StoredFile
from tests.models.conftest import Submit, config, set_status, submit_to
from tests.worker.processes import until

S = JobStatus

#: From each state: into which one it goes, the same one where nothing changes, None where the call is refused.
EXPECTED: dict[str, dict[JobStatus, JobStatus | None]] = {
    "request_cancel": {
        S.QUEUED: S.CANCELLED,
        S.RUNNING: S.CANCELLING,
        S.PAUSING: S.CANCELLING,
        S.PAUSED: S.CANCELLED,
        S.CANCELLING: S.CANCELLING,
        S.CANCELLED: S.CANCELLED,
        S.SUCCEEDED: None,
        S.FAILED: None,
    },
    "request_pause": {
        S.QUEUED: S.PAUSED,
        S.RUNNING: S.PAUSING,
        S.PAUSING: S.PAUSING,
        S.PAUSED: S.PAUSED,
        S.CANCELLING: None,
        S.CANCELLED: None,
        S.SUCCEEDED: None,
        S.FAILED: None,
    },
    "resume": {
        S.QUEUED: S.QUEUED,
        S.RUNNING: S.RUNNING,
        S.PAUSING: None,
        S.PAUSED: S.QUEUED,
        S.CANCELLING: None,
        S.CANCELLED: None,
        S.SUCCEEDED: None,
        S.FAILED: None,
    },
}


@pytest.mark.parametrize("call", EXPECTED)
def test_each_call_does_in_each_state_what_the_table_says(database: Database, submit: Submit, call: str) -> None:
    """A missing transition would leave a job stuck; an extra one would bring an ended job back."""
    act: Callable[[Session, str], Job] = getattr(jobs, call)
    for before, after in EXPECTED[call].items():
        job = submit()
        set_status(database, job.id, before)
        if after is None:
            with (
                pytest.raises(Conflict, match=f"is {before}; .* possible while it is: "),
                database.session() as session,
            ):
                act(session, job.id)
            after = before
        else:
            with database.session() as session:
                assert act(session, job.id).status is after
        with database.reading() as session:
            found = jobs.get(session, job.id)
            events = telemetry.events_after(session, job.id, 0, 10)
        assert found.status is after
        assert len(events) == (1 if after is before else 2), "an event for each change, and for nothing else"
        assert found.last_event == len(events)
        assert (found.version > job.version) is (after is not before)
        assert (found.finished_at is not None) is (after is S.CANCELLED and before is not S.CANCELLED)


def test_a_failed_job_that_has_kept_its_checkpoint_goes_on_from_it(database: Database, submit: Submit) -> None:
    """Guards what a full disk leaves: the last good state was kept, and nobody could use it."""
    job = submit()
    checkpoint = {"step": 3, "files": {"a": {"sha256": "0", "bytes": 1, "key": "jobs/x/checkpoints/1/0"}}}
    error = {"code": "storage_full", "message": "The disk took no more bytes.", "retryable": True}
    failed = {"error": error, "attempt": 3, "fence": 7, "finished_at": job.created_at}
    set_status(database, job.id, S.FAILED, **failed)
    with pytest.raises(Conflict, match="paused, failed with a checkpoint"), database.session() as session:
        jobs.resume(session, job.id)
    set_status(database, job.id, S.FAILED, **failed, checkpoint=checkpoint)
    with database.session() as session:
        again = jobs.resume(session, job.id)
    assert (again.status, again.attempt, again.fence, again.checkpoint) == (S.QUEUED, 0, 7, checkpoint)
    assert (again.error, again.finished_at, again.lease_expires_at) == (None, None, None)


def test_a_job_that_is_just_being_resumed_is_not_deleted(migrated_postgres: Database) -> None:
    """Guards a job that was answered with 202 and then swept away, by one who had read that it had failed.

    SQLite has one writer at a time.
    """
    database = migrated_postgres
    job = submit_to(database)
    set_status(database, job.id, S.FAILED, checkpoint={"step": 3, "files": {}})

    def delete() -> None:
        with database.session() as session:
            jobs.delete(session, job.id)

    with ThreadPoolExecutor(1) as pool:
        with database.session() as session:
            jobs.resume(session, job.id)
            session.flush()
            deleting = pool.submit(delete)
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            until(lambda: session.scalar(text(waits)) == 1)
        with pytest.raises(Conflict, match="is queued"):
            deleting.result(timeout=30)
    with database.reading() as session:
        assert jobs.get(session, job.id).status is S.QUEUED


def test_of_those_who_delete_a_job_at_once_one_does_and_the_others_do_not_find_it(database: Database) -> None:
    """Guards against a 500, and against a sweep (`limbeck gc`) that ends as somebody else was faster."""
    job = submit_to(database)
    set_status(database, job.id, S.SUCCEEDED)
    with database.session() as session:
        model = catalogue.add_model(session, kind=ModelKind.STUDENT, name="s", files=[], job_id=job.id).id
    gate = threading.Barrier(4)

    def delete(what: Callable[[Session, str], object], which: str) -> str:
        gate.wait(10)
        try:
            with database.session() as session:
                what(session, which)
        except NotFound:
            return "not found"
        return "deleted"

    with ThreadPoolExecutor(4) as pool:
        deleting = [pool.submit(delete, jobs.delete, job.id) for _ in range(3)]
        pool.submit(delete, catalogue.delete_model, model).result(timeout=30)
        assert sorted(one.result(timeout=30) for one in deleting) == ["deleted", "not found", "not found"]


def test_a_failed_job_whose_teacher_was_deleted_is_not_resumed(database: Database, submit: Submit) -> None:
    """Guards against a job that waits its turn and then fails again: what an ended job names may be deleted."""
    with database.session() as session:
        model = catalogue.add_model(session, kind=ModelKind.TEACHER, name="t", files=[]).id
    job = submit(config=config(teacher=f"model:{model}"))
    set_status(database, job.id, S.FAILED, checkpoint={"step": 3, "files": {}})
    with database.session() as session:
        catalogue.delete_model(session, model)
    with pytest.raises(InvalidInput, match="/teacher/source"), database.session() as session:
        jobs.resume(session, job.id)
    with database.reading() as session:
        assert jobs.get(session, job.id).status is S.FAILED


def test_a_job_that_is_not_there_is_said_to_be_not_there(database: Database) -> None:
    for act in (jobs.get, jobs.request_cancel, jobs.request_pause, jobs.resume, jobs.rerun, jobs.delete):
        with pytest.raises(NotFound, match="job_none"), database.session() as session:
            act(session, "job_none")


def test_cancelling_a_paused_job_lets_its_checkpoint_go(database: Database, submit: Submit) -> None:
    """No worker sees the job again, so nobody else would; its files would stay for ever."""
    job = submit()
    set_status(database, job.id, S.PAUSED, checkpoint={"step": 3, "files": {}})
    with database.session() as session:
        assert jobs.request_cancel(session, job.id).checkpoint is None


def test_pausing_keeps_the_lease_of_the_worker_that_has_to_write_the_checkpoint(
    database: Database, submit: Submit
) -> None:
    """Without its lease the job could be claimed by another worker at once."""
    job = submit()
    until = job.created_at + timedelta(hours=1)
    set_status(database, job.id, S.RUNNING, lease_expires_at=until, checkpoint={"step": 1, "files": {}})
    with database.session() as session:
        paused = jobs.request_pause(session, job.id)
    assert (paused.lease_expires_at, paused.checkpoint) == (until, {"step": 1, "files": {}})


def test_the_same_key_and_body_answer_the_first_job(database: Database, submit: Submit) -> None:
    """A client that repeats a request after a timeout must not train twice."""
    first = submit(idempotency_key="k", request_hash="1")
    assert submit(idempotency_key="k", request_hash="1").id == first.id
    with pytest.raises(IdempotencyKeyReused, match=first.id):
        submit(idempotency_key="k", request_hash="2")
    assert submit(request_hash="1").id != first.id


def test_a_race_of_the_same_request_makes_one_job(database: Database, submit: Submit) -> None:
    """A proxy may send a request again while the first is under way: select-then-insert would make two, or fail."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: submit(idempotency_key="k", request_hash="1").id, range(16)))
    assert len(set(found)) == 1
    with database.reading() as session:
        assert session.scalars(select(Job.id)).all() == [found[0]]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # SQLite lets one write at a time
def test_a_race_whose_winner_is_deleted_at_once_makes_the_job_again(database: Database, submit: Submit) -> None:
    """Guards against a 500 for the second of two equal requests, where the first one's job is gone when it looks."""
    race: list[str] = []

    def be_faster(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO jobs") and not race:
            race.append("begun")
            race[0] = submit(idempotency_key="k").id

    def be_gone(context: Any) -> None:
        with database.session() as session:
            session.delete(jobs.get(session, race[0]))

    event.listen(database.engine, "before_cursor_execute", be_faster)
    event.listen(database.engine, "handle_error", be_gone)
    try:
        second = submit(idempotency_key="k")
    finally:
        event.remove(database.engine, "before_cursor_execute", be_faster)
        event.remove(database.engine, "handle_error", be_gone)
    with database.reading() as session:
        assert session.scalars(select(Job.id)).all() == [second.id]
    assert second.id != race[0]


def test_what_was_submitted_is_what_is_read(database: Database, submit: Submit) -> None:
    """Types that pass through SQLite's text or PostgreSQL's JSONB must come back as they were."""
    made = submit(name="ümläut 🧪", labels={"a.b": 'quote " here'}, config={**config(), "x": [1, 2.5, None, "é"]})
    with database.reading() as session:
        found = jobs.get(session, made.id)
    assert (found.name, found.labels, found.config) == (made.name, made.labels, made.config)
    assert found.config["x"] == [1, 2.5, None, "é"]
    assert found.status is S.QUEUED
    assert found.created_at.tzinfo is not None
    assert (found.version, found.last_event, found.checkpoint, found.error) == (2, 1, None, None)


@pytest.mark.parametrize("bad", [{"name": "a\x00b"}, {"labels": {"k\ud800": "v"}}, {"labels": {"k": "\x00"}}])
def test_text_that_cannot_be_stored_is_refused_by_name(submit: Submit, bad: dict[str, Any]) -> None:
    """PostgreSQL answers U+0000 with an error that would be a 500; SQLite stores it, and other tools read half."""
    with pytest.raises(InvalidInput, match="U\\+") as caught:
        submit(**bad)
    assert caught.value.problems[0].pointer.startswith("/" + next(iter(bad)))


def test_pages_give_each_job_once_newest_first(database: Database, submit: Submit) -> None:
    """Rows of the same millisecond must not fall between two pages, nor come twice."""
    made = [submit().id for _ in range(11)]
    with database.session() as session:
        moment = session.scalars(select(Job.created_at).limit(1)).one()
        session.execute(update(Job).values(created_at=moment))
    seen: list[str] = []
    cursor = None
    while True:
        with database.reading() as session:
            page = jobs.list_page(session, limit=4, cursor=cursor)
        seen += [job.id for job in page.items]
        submit()  # newer rows do not shift the pages
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == sorted(made, reverse=True)


@pytest.mark.parametrize("cursor", ["", "x", "é", "bm90aGluZw", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5L2E"])
def test_a_cursor_that_is_not_ours_is_bad_input(database: Database, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="cursor"), database.reading() as session:
        jobs.list_page(session, limit=4, cursor=cursor)


def test_filters_hold_together(database: Database, submit: Submit) -> None:
    """Keys with dots and quotes are paths in SQLite's JSON functions unless they are kept from being so."""
    awkward = "a.\"b'c$"
    wanted = submit(method="kd", labels={"team": "x", awkward: "1"})
    submit(method="kd", labels={"team": "y", awkward: "1"})
    submit(method="none", labels={"team": "x"})
    with database.reading() as session:

        def ids(**filters: Any) -> list[str]:
            return [job.id for job in jobs.list_page(session, limit=10, cursor=None, **filters).items]

        assert ids(labels={"team": "x", awkward: "1"}) == [wanted.id]
        assert ids(method="kd", labels={"team": "x"}) == [wanted.id]
        assert len(ids(status=S.QUEUED)) == 3
        assert ids(status=S.RUNNING) == []
        assert ids(labels={"team": "z"}) == ids(labels={"none": "x"}) == []


def test_the_queue_position_is_the_place_in_the_order_of_claims(database: Database, submit: Submit) -> None:
    """Two expressions of one order drift apart; the position that a user sees would be a lie."""
    queued = [
        submit(owner=owner, priority=priority).id
        for priority in (0, 5, 0)
        for owner in ("anna", "anna", "bert", "cara")
    ]
    for owner, many in (("anna", 2), ("bert", 1)):
        for _ in range(many):
            set_status(database, submit(owner=owner).id, S.RUNNING)
    with database.reading() as session:
        order = session.scalars(select(Job.id).where(Job.status == S.QUEUED).order_by(*jobs.claim_order())).all()
        positions = {job_id: jobs.queue_position(session, jobs.get(session, job_id)) for job_id in queued}
        running = session.scalars(select(Job).where(Job.status == S.RUNNING)).first()
        assert running is not None
        assert jobs.queue_position(session, running) is None
        assert overview.queue_positions(session) == positions
    assert [positions[job_id] for job_id in order] == list(range(1, 13))
    owners = {job_id: owner for job_id, owner in zip(queued, ["anna", "anna", "bert", "cara"] * 3, strict=True)}
    assert [owners[job_id] for job_id in order[:4]] == ["cara", "bert", "anna", "anna"]


def test_deleting_takes_everything_along_and_names_the_files(database: Database, submit: Submit) -> None:
    """Rows that stay behind break the next page; keys that are not named stay on the disk for ever."""
    job = submit()
    with pytest.raises(Conflict, match="is queued; delete"), database.session() as session:
        jobs.delete(session, job.id)
    checkpoint = {"step": 1, "files": {"a": {"sha256": "s", "bytes": 1, "key": "jobs/c/a"}}}
    set_status(database, job.id, S.FAILED, checkpoint=checkpoint)
    with database.session() as session:
        telemetry.add_log(session, job.id, 1, "text")
        telemetry.add_metrics(session, job.id, [telemetry.Point("loss", 1, 0.5)])
        model = catalogue.add_model(
            session, kind=ModelKind.STUDENT, name="s", job_id=job.id, files=[StoredFile("f", "models/f", 3, "h")]
        )
    with database.session() as session:
        assert sorted(jobs.delete(session, job.id)) == ["jobs/c/a", "models/f"]
    with database.reading() as session:
        assert telemetry.events_after(session, job.id, 0, 10) == []
        assert telemetry.metrics(session, job.id, 10) == {}
        assert list(telemetry.read_log(session, job.id)) == []
        with pytest.raises(NotFound):
            catalogue.get_model(session, model.id)


def test_a_deleted_jobs_models_can_be_kept(database: Database, submit: Submit) -> None:
    job = submit()
    set_status(database, job.id, S.SUCCEEDED)
    with database.session() as session:
        model = catalogue.add_model(
            session, kind=ModelKind.STUDENT, name="s", job_id=job.id, files=[StoredFile("f", "models/f", 3, "h")]
        )
    with database.session() as session:
        assert jobs.delete(session, job.id, keep_models=True) == []
    with database.reading() as session:
        assert catalogue.get_model(session, model.id).job_id is None
        assert [file.key for file in catalogue.model_files(session, model.id)] == ["models/f"]


def test_jobs_are_counted_by_status_also_where_there_are_none(database: Database, submit: Submit) -> None:
    submit()
    with database.reading() as session:
        counts = overview.count_by_status(session)
    assert counts == {status: int(status is S.QUEUED) for status in JobStatus}
