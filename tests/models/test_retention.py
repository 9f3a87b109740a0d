"""What is swept, and what must never be."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from limbeck.errors import NotFound
from models import maintenance, schema
from models.db import Database
from models.job import Job, JobStatus
from models.model import ModelKind
from models.repository import catalogue, jobs
from models.repository.catalogue import StoredFile
from models.retention import gc
from models.settings import Settings
from models.storage import LocalStorage
from tests.models.conftest import Submit, config, set_status

NOW = datetime(2030, 1, 1, tzinfo=UTC)
OLD = NOW - timedelta(days=10)

Put = Callable[..., str]


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture
def put(storage: LocalStorage, tmp_path: Path) -> Put:
    """Store an object of a given size and age."""

    def make(key: str, *, size: int = 10, age: timedelta = timedelta(days=10)) -> str:
        source = tmp_path / "source"
        source.write_bytes(b"x" * size)
        storage.put_file(source, key)
        path = storage.local_path(key)
        assert path is not None
        moment = (NOW - age).timestamp()
        os.utime(path, (moment, moment))
        return key

    return make


@pytest.fixture
def ended(database: Database, submit: Submit, put: Put) -> Callable[..., Job]:
    """A job that has ended, with a student of a given size."""

    def make(*, days_ago: float, size: int = 10) -> Job:
        job = submit()
        finished = NOW - timedelta(days=days_ago)
        set_status(database, job.id, JobStatus.SUCCEEDED, finished_at=finished)
        key = put(f"jobs/{job.id}/attempts/1/student", size=size)
        with database.session() as session:
            files = [StoredFile("f", key, size, "h")]
            catalogue.add_model(session, kind=ModelKind.STUDENT, name="s", job_id=job.id, files=files)
        return job

    return make


def _settings(tmp_path: Path, **limits: float) -> Settings:
    return Settings.model_validate({"data_dir": tmp_path, **limits})


def _keys(storage: LocalStorage) -> set[str]:
    return {entry.key for entry in storage.list()}


def test_nothing_that_a_row_names_or_a_worker_uses_is_an_orphan(
    database: Database, submit: Submit, storage: LocalStorage, put: Put, ended: Callable[..., Job], tmp_path: Path
) -> None:
    """One forgotten kind of reference, and the sweep deletes a user's model."""
    student = f"jobs/{ended(days_ago=9).id}/attempts/1/student"
    running, paused, failed = submit(), submit(), submit()
    state = put(f"jobs/{paused.id}/checkpoints/1")
    saved = {"step": 5, "files": {"a": {"sha256": "1", "bytes": 10, "key": state}}}
    set_status(database, paused.id, JobStatus.PAUSED, checkpoint=saved)
    resumable = put(f"jobs/{failed.id}/checkpoints/1")
    saved = {"step": 5, "files": {"a": {"sha256": "1", "bytes": 10, "key": resumable}}}
    set_status(database, failed.id, JobStatus.FAILED, checkpoint=saved, finished_at=OLD)
    set_status(database, running.id, JobStatus.RUNNING, fence=2)
    with database.session() as session:
        splits = {"train": {"rows": 1, "bytes": 10, "sha256": "s", "key": put("datasets/d/train.parquet")}}
        catalogue.add_dataset(session, name="d", splits=splits, profile={}, sha256="h")
    kept = {
        student,
        "datasets/d/train.parquet",
        state,
        resumable,
        put(f"jobs/{running.id}/checkpoints/2"),
        put(f"jobs/{running.id}/attempts/2/student"),
        put("models/new/upload", age=timedelta(minutes=59)),
        put("other/thing"),
    }
    gone = {
        put(f"jobs/{running.id}/attempts/1/student"),
        put("jobs/job_gone/checkpoints/3"),
        put("models/left/config.json"),
        put("datasets/left/train.parquet"),
    }
    plan = gc(database, storage, _settings(tmp_path), NOW, dry_run=True)
    assert _keys(storage) == kept | gone
    done = gc(database, storage, _settings(tmp_path), NOW)
    assert _keys(storage) == kept
    assert (done.jobs, done.objects, done.orphans, done.bytes) == ((), 4, 4, 40)
    assert (plan.orphans, plan.bytes, plan.bytes_left, plan.dry_run) == (4, 40, done.bytes_left, True)


def test_jobs_go_by_age_with_their_files(
    database: Database, submit: Submit, storage: LocalStorage, ended: Callable[..., Job], tmp_path: Path
) -> None:
    """A job that has not ended has no age, however long it waits."""
    old, young, waiting = ended(days_ago=8), ended(days_ago=6), submit()
    settings = _settings(tmp_path, keep_jobs_days=7)
    plan = gc(database, storage, settings, NOW, dry_run=True)
    with database.reading() as session:
        assert jobs.get(session, old.id).id == old.id
    done = gc(database, storage, settings, NOW)
    assert done.jobs == plan.jobs == (old.id,)
    assert (done.objects, done.orphans, done.bytes) == (plan.objects, plan.orphans, plan.bytes) == (1, 0, 10)
    with database.reading() as session:
        assert {jobs.get(session, job.id).id for job in (young, waiting)} == {young.id, waiting.id}
        with pytest.raises(NotFound):
            jobs.get(session, old.id)
    assert _keys(storage) == {f"jobs/{young.id}/attempts/1/student"}


def test_above_the_limit_the_oldest_go_and_no_more_than_needed(
    database: Database, storage: LocalStorage, put: Put, ended: Callable[..., Job], tmp_path: Path
) -> None:
    """Orphans count first: no job has to go for what nobody needs."""
    newest, oldest, middle = ended(days_ago=1, size=400), ended(days_ago=9, size=400), ended(days_ago=5, size=400)
    put("models/left/x", size=5000)
    settings = _settings(tmp_path, max_storage_gb=900 / 1000**3)
    plan = gc(database, storage, settings, NOW, dry_run=True)
    done = gc(database, storage, settings, NOW)
    assert done.jobs == plan.jobs == (oldest.id,)
    assert done.bytes_left == plan.bytes_left == 800
    assert _keys(storage) == {f"jobs/{job.id}/attempts/1/student" for job in (newest, middle)}


def test_teachers_answers_stay_within_their_limit_and_go_before_any_job(
    database: Database, storage: LocalStorage, put: Put, ended: Callable[..., Job], tmp_path: Path
) -> None:
    """Guards against a sweep that takes them for orphans, and a job that goes for what can be computed again."""
    ages = [timedelta(days=age) for age in (9, 2, 5)]
    _oldest, newest, middle = (
        put(f"cache/teacher/{number}/answers.safetensors", size=300, age=age) for number, age in enumerate(ages)
    )
    student = f"jobs/{ended(days_ago=9, size=400).id}/attempts/1/student"
    assert gc(database, storage, _settings(tmp_path), NOW).objects == 0
    limits = _settings(tmp_path, teacher_cache_gb=700 / 1000**3)
    plan = gc(database, storage, limits, NOW, dry_run=True)
    done = gc(database, storage, limits, NOW)
    assert _keys(storage) == {newest, middle, student}
    assert (done.answers, done.objects, done.bytes, done.bytes_left) == (1, 1, 300, 1000)
    assert (plan.answers, plan.objects, plan.bytes, plan.bytes_left) == (1, 1, 300, 1000)
    tight = gc(database, storage, _settings(tmp_path, max_storage_gb=710 / 1000**3), NOW)
    assert (_keys(storage), tight.jobs) == ({newest, student}, ())
    last = gc(database, storage, _settings(tmp_path, max_storage_gb=100 / 1000**3), NOW)
    assert (_keys(storage), len(last.jobs), last.answers) == (set(), 1, 1)


def test_a_job_whose_student_teaches_another_stays(
    database: Database, submit: Submit, storage: LocalStorage, ended: Callable[..., Job], tmp_path: Path
) -> None:
    """The policy may not do what a user is refused."""
    old = ended(days_ago=9)
    with database.reading() as session:
        student = catalogue.models_of_job(session, old.id)[0].id
    submit(config=config(teacher=f"model:{student}"))
    done = gc(database, storage, _settings(tmp_path, keep_jobs_days=7, max_storage_gb=1e-9), NOW)
    assert (done.jobs, done.kept, done.objects) == ((), (old.id,), 0)


def test_without_a_policy_ended_jobs_stay(
    database: Database, storage: LocalStorage, ended: Callable[..., Job], tmp_path: Path
) -> None:
    ended(days_ago=4000)
    assert gc(database, storage, _settings(tmp_path)).jobs == ()


def test_parts_of_a_pass_go_when_no_job_fetched_them(
    database: Database, storage: LocalStorage, put: Put, tmp_path: Path
) -> None:
    """Guards the storage from parts of jobs that were cancelled, and a pass that goes on from losing its parts."""
    old = put("cache/teacher-parts/k/0-8.safetensors", age=timedelta(hours=2))
    young = put("cache/teacher-parts/k/8-16.safetensors", age=timedelta(minutes=30))
    done = gc(database, storage, _settings(tmp_path), NOW)
    assert (done.orphans, done.answers) == (1, 0)
    assert [storage.exists(key) for key in (old, young)] == [False, True]


def test_a_folder_without_a_server_is_told_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a sweep in the wrong place that finds nothing to sweep, and makes a database there."""
    folder = tmp_path / "elsewhere"
    assert maintenance.main(["--data-dir", str(folder), "gc", "--dry-run"]) == 1
    assert capsys.readouterr().err.startswith(f"There is no database {folder / 'limbeck.db'}. Name the folder")
    assert not folder.exists()


def test_a_sweep_leaves_a_schema_that_it_does_not_know(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a sweep, even a dry one, that changes the tables below a server which runs."""
    monkeypatch.setenv("LIMBECK_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    before = schema._revisions()[1]
    with database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :old"), {"old": before})
    try:
        assert maintenance.main(["--data-dir", str(tmp_path), "gc", "--dry-run"]) == 1
        assert f"The database has schema {before}" in capsys.readouterr().err
        with database.reading() as session:
            assert session.scalar(text("SELECT version_num FROM alembic_version")) == before
    finally:
        with database.session() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :new"), {"new": schema.head()})
