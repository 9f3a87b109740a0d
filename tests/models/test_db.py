"""Transactions: who may write, who waits for whom, and what is said when the database is away."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from limbeck.errors import InvalidInput, StorageFull, Unavailable
from models.base import db_now
from models.db import Database
from models.job import Job
from models.repository import jobs
from models.settings import Settings
from tests.models.conftest import Submit
from tests.services import Postgres, free_port


def test_an_error_rolls_everything_back(database: Database, submit: Submit) -> None:
    """Half a change, such as a status without its event, must not stay."""
    job = submit()
    with pytest.raises(RuntimeError, match="boom"):
        _rename_and_fail(database, job.id)
    with database.reading() as session:
        assert jobs.get(session, job.id).name == job.name


def test_a_reading_session_cannot_write_and_leaves_no_trace_on_its_connection(
    database: Database, submit: Submit
) -> None:
    """A write that slips into a GET would, on SQLite, fail under load only."""
    job = submit()
    with pytest.raises(DBAPIError, match=r"(?i)read-?\s?only"), database.reading() as session:
        session.execute(update(Job).values(name="changed"))
    for _ in range(3):  # the pool hands the same connection out
        with database.session() as session:
            session.execute(update(Job).values(name="changed"))
        with database.reading() as session:
            assert jobs.get(session, job.id).name == "changed"


def test_reading_first_and_writing_then_never_fails_halfway(database: Database, submit: Submit) -> None:
    """Of two deferred transactions of SQLite that have read and want to write one fails at once; counting shows it."""
    job = submit()

    def count(_: int) -> None:
        with database.session() as session:
            seen = session.scalars(select(Job).where(Job.id == job.id).with_for_update()).one()
            time.sleep(0.001)
            seen.priority += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    with database.reading() as session:
        assert jobs.get(session, job.id).priority == 40


def test_readers_do_not_wait_for_a_writer(database: Database, submit: Submit) -> None:
    """A long write, such as a batch of metrics, must not hold up a hundred polling clients."""
    job = submit()
    with database.session() as session:
        session.execute(update(Job).values(name="not yet"))
        begun = time.monotonic()
        with database.reading() as reader:
            assert jobs.get(reader, job.id).name == job.name
        assert time.monotonic() - begun < 1


def test_a_reading_session_sees_one_state(database: Database, submit: Submit) -> None:
    """sqlite3 leaves SELECTs outside of any transaction unless it is told otherwise, and PostgreSQL gives each of them
    a state of its own: an answer of several would tell of a model without its files."""
    with database.reading() as reader:
        assert jobs.list_page(reader, limit=10, cursor=None).items == []
        submit()
        assert jobs.list_page(reader, limit=10, cursor=None).items == []
    with database.reading() as reader:
        assert len(jobs.list_page(reader, limit=10, cursor=None).items) == 1


def test_the_databases_clock_is_the_time(database: Database) -> None:
    """Leases are judged by it: off by a time zone, every lease would be over or last for hours."""
    with database.reading() as session:
        now = session.scalars(select(db_now())).one()
    assert abs(now.timestamp() - time.time()) < 5


def test_a_server_that_is_away_is_unavailable_and_found_again(postgres_server: Postgres) -> None:
    """A broken connection in the pool must be an honest 503, once, and no error any more when the server is back."""
    own = Postgres()
    own.start()
    database = Database(Settings(database_url=own.new_database()))
    try:
        database.migrate()
        database.ping()
        own.kill()
        with pytest.raises(Unavailable, match="does not answer"):
            database.ping()
        with pytest.raises(Unavailable), database.session() as session:
            session.execute(text("SELECT 1"))
        with pytest.raises(Unavailable):
            database.migrate()
        own.start()
        database.ping()
    finally:
        database.dispose()
        own.stop()


def test_a_server_that_became_a_standby_is_unavailable_to_who_writes_and_left(postgres_url: str) -> None:
    """Guards a job's attempt, and callers from a 500, against a failover; its connections stay read-only for good."""
    database = Database(Settings(database_url=postgres_url))
    plain, name = postgres_url.replace("+psycopg", ""), postgres_url.rsplit("/", 1)[1]

    def read_only(value: str) -> None:  # as a standby is, and as managed databases make theirs when the disk is full
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(plain, autocommit=True, options=options) as connection:
            connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'.encode())

    try:
        database.migrate()
        read_only("on")
        database.dispose()
        with pytest.raises(Unavailable, match="takes no writes"):
            _rename_all(database)
        database.ping()
        read_only("off")
        _rename_all(database)
    finally:
        read_only("off")
        database.dispose()


def test_a_file_that_cannot_be_written_is_unavailable_to_who_writes(tmp_path: Path) -> None:
    """A file system that was mounted again without writes is no fault of the statement."""
    settings = Settings(data_dir=tmp_path)
    database = Database(settings)
    database.migrate()
    database.dispose()
    file = settings.database_url.removeprefix("sqlite:///")
    database = Database(Settings(data_dir=tmp_path, database_url=f"sqlite:///file:{file}?mode=ro&uri=true"))
    database.ping()
    with pytest.raises(Unavailable, match="takes no writes"):
        _rename_all(database)
    database.ping()
    database.dispose()


def test_a_connection_that_breaks_within_a_transaction_is_unavailable(postgres_server: Postgres) -> None:
    database = Database(Settings(database_url=postgres_server.new_database()))
    try:
        with pytest.raises(Unavailable), database.session() as session:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    finally:
        database.dispose()


def test_a_column_that_changes_below_a_running_process_is_no_mistake_of_its_own(postgres_url: str) -> None:
    """Guards callers from a 500, and a student from being made again, while the next version has migrated already: what
    a connection has prepared does not fit any more."""
    database = Database(Settings(database_url=postgres_url))
    try:
        database.migrate()
        for _ in range(12):  # psycopg prepares what it has seen five times
            with database.reading() as session:
                session.scalars(select(Job)).all()
        with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as another:
            another.execute("ALTER TABLE jobs ALTER COLUMN priority TYPE bigint")
        with pytest.raises(Unavailable), database.reading() as session:
            session.scalars(select(Job)).all()
        with database.reading() as session:
            session.scalars(select(Job)).all()
    finally:
        database.dispose()


def test_no_server_at_all_is_said_within_seconds() -> None:
    """Nothing listens: the answer must come before a client gives up, and must not be a stack trace."""
    database = Database(Settings(database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none"))
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"(?i)connection"):
        database.ping()
    assert time.monotonic() - begun < 6
    database.dispose()


def test_a_writer_that_waits_too_long_is_told_so(tmp_path: Path) -> None:
    """SQLite's "database is locked" is no fault of the request; the client may try again."""
    database = Database(Settings(data_dir=tmp_path))
    database.migrate()
    impatient = Database(Settings(data_dir=tmp_path))
    with database.session() as session, impatient.engine.connect() as connection:
        session.execute(text("DELETE FROM jobs"))
        connection.connection.cursor().execute("PRAGMA busy_timeout = 50")
        connection.detach()
        with pytest.raises(Exception, match="locked") as caught:
            connection.begin()
    assert isinstance(caught.value, DBAPIError)
    impatient.dispose()
    database.dispose()


def test_a_full_disk_is_storage_full(tmp_path: Path) -> None:
    """The job has to end as ``storage_full`` and not as a database that is away, which is waited for."""
    database = Database(Settings(data_dir=tmp_path))
    database.migrate()
    with pytest.raises(StorageFull):
        _write_beyond_the_end(database)
    database.dispose()


def test_no_schema_is_unavailable(tmp_path: Path) -> None:
    """Ready before the migration has run: every call would be a 500."""
    database = Database(Settings(data_dir=tmp_path))
    with pytest.raises(Unavailable, match="schema"):
        database.ping()
    database.dispose()


def test_a_mistake_in_a_statement_is_no_absence(database: Database) -> None:
    """Answered with 503, a bug would look like weather."""
    with pytest.raises(DBAPIError), database.reading() as session:
        session.execute(text("SELECT * FROM no_such_table"))


def test_more_threads_than_connections_wait_their_turn(database: Database, submit: Submit) -> None:
    """FastAPI's pool has 40 threads; a smaller pool that fails at once would answer 503 under load."""
    job = submit()
    barrier = threading.Barrier(40, timeout=20)

    def read(_: int) -> str:
        barrier.wait()
        with database.reading() as session:
            return jobs.get(session, job.id).id

    with ThreadPoolExecutor(40) as pool:
        assert set(pool.map(read, range(40))) == {job.id}


def test_another_database_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"'mysql'; allowed: sqlite"):
        Database(Settings(database_url="mysql://host/db"))


def _rename_all(database: Database) -> None:
    with database.session() as session:
        session.execute(update(Job).values(name="changed"))


def _rename_and_fail(database: Database, job_id: str) -> None:
    with database.session() as session:
        session.execute(update(Job).where(Job.id == job_id).values(name="changed"))
        raise RuntimeError("boom")


def _write_beyond_the_end(database: Database) -> None:
    with database.session() as session:
        pages = session.execute(text("PRAGMA page_count")).scalar_one()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
        large = {"profile": "x" * 100_000}
        session.execute(text("INSERT INTO datasets VALUES ('d', 'n', 0, '{}', :profile, 0, 's')"), large)
