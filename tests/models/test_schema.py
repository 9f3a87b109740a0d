"""The schema: migrations and metadata agree, and starting several processes at once is safe."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from limbeck.errors import Conflict, Unavailable
from models import schema
from models.db import Database
from models.event import Event
from models.settings import Settings
from models.tables import METADATA
from tests.services import free_port

ROOT = Path(__file__).resolve().parents[2]


def test_the_migrated_schema_equals_the_metadata(database: Database) -> None:
    """A column that is added to a table and forgotten in a migration shows only in production."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_constraints_have_the_names_of_the_convention(database: Database) -> None:
    """A constraint without a name cannot be dropped by a later migration on SQLite."""
    inspector = inspect(database.engine)
    for table in METADATA.sorted_tables:
        found = {inspector.get_pk_constraint(table.name)["name"]}
        found |= {key["name"] for key in inspector.get_foreign_keys(table.name)}
        found |= {key["name"] for key in inspector.get_unique_constraints(table.name)}
        wanted = {str(constraint.name) for constraint in table.constraints if constraint.name}
        assert {name for name in found if name} == wanted


def test_processes_that_start_at_once_all_come_up(database_url: str) -> None:
    """API and worker start together on an empty folder; the second must wait, not fail on a table that is there."""
    code = (
        "import sys; from models.db import Database; from models.settings import Settings;"
        "d = Database(Settings(database_url=sys.argv[1])); d.migrate(); d.ping(); d.dispose()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database_url], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)
    ]
    errors = [process.communicate(timeout=60)[1].decode() for process in processes]
    assert [(process.returncode, error) for process, error in zip(processes, errors, strict=True)] == [(0, "")] * 3


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    """An old version that writes into a newer schema would corrupt it quietly."""
    _set_revision(database, "9999")
    try:
        with pytest.raises(Conflict, match=r"9999.*newer"):
            database.migrate()
    finally:
        _set_revision(database, schema.head())


def test_a_deployment_that_forgot_to_migrate_is_not_ready(database: Database) -> None:
    """Guards against an API that is ready and answers 500, as a table is not there. One that still runs while the
    next version has migrated already goes on."""
    before = schema._revisions()[1]
    try:
        _set_revision(database, before)
        with pytest.raises(Unavailable, match=rf"schema {before}, and this Limbeck works with {schema.head()}"):
            database.ping()
        with pytest.raises(Conflict, match=before):
            database.require_schema()
        _set_revision(database, "9999")
        database.ping()
        with pytest.raises(Conflict, match="9999"):
            database.require_schema()
    finally:
        _set_revision(database, schema.head())
    database.require_schema()


@pytest.mark.services
def test_in_production_a_worker_does_not_migrate(postgres_url: str, tmp_path: Path) -> None:
    """Guards against a new worker that changes the tables below an old API, past the deployment's own step."""
    done = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=ROOT,
        env={
            **os.environ,
            "LIMBECK_ENVIRONMENT": "production",
            "LIMBECK_DATA_DIR": str(tmp_path),
            "LIMBECK_DATABASE_URL": postgres_url,
            "LIMBECK_BROKER_URL": "redis://127.0.0.1:1/0",
            "LIMBECK_STORAGE_URL": (tmp_path / "storage").as_uri(),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "The database has no schema yet" in done.stderr.splitlines()[-1]


def test_migrating_twice_changes_nothing(database: Database) -> None:
    """``limbeck up`` migrates at every start."""
    database.migrate()
    database.ping()


def test_every_migration_can_be_undone(database_url: str) -> None:
    """Guards the way back to an older version."""
    database = Database(Settings(database_url=database_url))
    database.migrate()
    with database.engine.begin() as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    database.migrate()
    database.ping()
    database.dispose()


def test_foreign_keys_are_enforced(database: Database) -> None:
    """SQLite ignores foreign keys unless each connection asks for them."""
    with pytest.raises(IntegrityError), database.session() as session:
        session.add(Event(job_id="job_none", sequence=1, at=datetime.now(UTC), kind="k", message="m", data={}))


def test_sqlite_runs_in_wal_mode_and_keeps_its_foreign_keys_after_migrating(tmp_path: Path) -> None:
    """Migrations switch foreign keys off on their connection, which goes back into the pool."""
    database = Database(Settings(data_dir=tmp_path))
    database.migrate()
    with database.session() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA synchronous")) == 1
        assert session.scalar(text("PRAGMA busy_timeout")) >= 10_000
    database.dispose()


def _set_revision(database: Database, revision: str) -> None:
    with database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_the_one_shot_of_the_compose_file_migrates_or_says_why_not(tmp_path: Path) -> None:
    """The other services wait for its exit code; a traceback would hide that only the address is wrong."""

    def run(url: str) -> tuple[int, str]:
        environment = {**os.environ, "LIMBECK_DATABASE_URL": url}
        command = [sys.executable, "-m", "migrations"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert run(f"sqlite:///{tmp_path / 'x.db'}") == (0, f"The database has schema {schema.head()}.\n")
    code, said = run(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert (code, said.count("\n")) == (1, 1)
    assert "does not answer" in said
