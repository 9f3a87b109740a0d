"""A database of every older version, with rows in all of its tables, is brought up to date: nothing of it is lost, and
the schema is the one that a new database has. Likewise on the way back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Column, Connection, Engine, MetaData, Table, inspect, select
from sqlalchemy.types import JSON, BigInteger, Float, Integer, String

from models import schema
from models.db import Database
from models.job import JobStatus
from models.model import ModelKind
from models.settings import Settings
from models.tables import METADATA

#: Oldest first. The newest is among them, so that the next one is walked to from the day on that it is written.
REVISIONS = tuple(reversed(schema._revisions()))
#: Columns whose values mean something to the code that reads them; of all others the type says what fits.
KINDS = {("jobs", "status"): tuple(JobStatus), ("models", "kind"): tuple(ModelKind)}
ROWS = len(JobStatus)
REBUILD = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "later", "{before}", None, None


def upgrade():
    with op.batch_alter_table("jobs", recreate="always"):
        pass
"""

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def old(database_url: str) -> Iterator[Database]:
    """A database without any schema yet."""
    database = Database(Settings(database_url=database_url))
    yield database
    database.dispose()


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_database_with_rows_is_brought_up_to_date_and_back(old: Database, revision: str) -> None:
    """Guards against a column that old rows have no value for, and rows that go with a table that is rebuilt."""
    _go(old, "upgrade", revision)
    with old.engine.begin() as connection:
        before = _fill(connection)
    old.migrate()
    assert _rows(old.engine, before) == before
    for mapper in METADATA.sorted_tables:  # as this code reads them: an unknown status would be an error
        with old.reading() as session:
            assert len(session.execute(select(mapper)).all()) == len(before.get(mapper.name, ()))
    _go(old, "downgrade", revision)
    assert _rows(old.engine, before) == before


def test_the_migrations_make_what_the_tables_say(old: Database) -> None:
    """Guards what Alembic does not compare: keys, what a delete does to whoever refers, who numbers the rows."""
    old.migrate()
    migrated = _described(old.engine)
    _go(old, "downgrade", "base")
    METADATA.create_all(old.engine)
    assert migrated == _described(old.engine)


def test_alembics_own_command_line_loses_nothing_either(tmp_path: Path) -> None:
    """Guards a job's events, metrics and log where a later migration rebuilds the table of jobs, as SQLite has to: the
    old table goes, and with it would go whatever refers to its rows."""
    database = Database(Settings(data_dir=tmp_path))
    database.migrate()
    with database.engine.begin() as connection:
        before = _fill(connection)
    shutil.copytree(schema.MIGRATIONS, tmp_path / "migrations")
    (tmp_path / "migrations/versions/later.py").write_text(REBUILD.format(before=schema.head()))
    subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(tmp_path / "migrations/alembic.ini"), "upgrade", "head"],
        cwd=schema.MIGRATIONS.parent,
        env={**os.environ, "LIMBECK_DATA_DIR": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    assert _rows(database.engine, before) == before
    database.dispose()


def _go(database: Database, direction: str, revision: str) -> None:
    with schema.alone(database.engine) as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        getattr(command, direction)(config, revision)


def _fill(connection: Connection) -> Rows:
    """Rows for every table that there is: with all that may be left out, and without it."""
    metadata = MetaData()
    metadata.reflect(connection)
    tables = [table for table in metadata.sorted_tables if table.name != "alembic_version"]
    for table in tables:
        rows = [{column.name: _value(table, column, place) for column in table.columns} for place in range(ROWS)]
        connection.execute(table.insert(), rows)
    return {table.name: _read(connection, table, [column.name for column in table.columns]) for table in tables}


def _value(table: Table, column: Column[Any], place: int) -> Any:
    """A value of the row at this place; a row refers to those at the same place in other tables."""
    if column.nullable and place % 2:
        return None
    if column.foreign_keys or (column.primary_key and isinstance(column.type, String)):
        return f"id {place}"
    if kinds := KINDS.get((table.name, column.name)):
        return kinds[place % len(kinds)].value
    match column.type:
        case JSON():
            return {"of": place, "ä": [0.1, None, {"deep": "text"}]}
        case String():
            return f"{column.name} {place}"
        case BigInteger():
            return 2**40 + place if not column.primary_key else place + 1
        case Integer():
            return place + 1
        case Float():
            return place / 3
    raise AssertionError(f"{table.name}.{column.name} has a type that is new here: {column.type!r}")


def _rows(engine: Engine, wanted: Rows) -> Rows:
    """What the tables hold now, as far as ``wanted`` knows them."""
    metadata = MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
        return {name: _read(connection, metadata.tables[name], list(rows[0])) for name, rows in wanted.items()}


def _read(connection: Connection, table: Table, columns: list[str]) -> list[dict[str, Any]]:
    query = select(*(table.c[name] for name in columns)).order_by(*table.primary_key.columns)
    return [dict(row) for row in connection.execute(query).mappings()]


def _described(engine: Engine) -> dict[str, Any]:
    """All that a database tells of its tables, in no order that they were made in."""
    inspector = inspect(engine)
    return {name: _of_table(inspector, name) for name in sorted(inspector.get_table_names()) if name in METADATA.tables}


def _of_table(inspector: Any, table: str) -> dict[str, Any]:
    lists = {
        "columns": [one | {"type": repr(one["type"])} for one in inspector.get_columns(table)],
        "foreign keys": inspector.get_foreign_keys(table),
        "indices": inspector.get_indexes(table),
        "unique": inspector.get_unique_constraints(table),
        "checks": inspector.get_check_constraints(table),
    }
    told = {what: sorted(found, key=lambda one: str(one["name"])) for what, found in lists.items()}
    return told | {"primary key": inspector.get_pk_constraint(table)}
