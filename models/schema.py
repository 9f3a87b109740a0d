"""Migrations, run from code: ``Database.migrate()`` and the tests need no ``alembic.ini``."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from limbeck.errors import Conflict, Unavailable
from models.failures import failure_of

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"

#: Any number, the same in every Limbeck.
_ADVISORY_LOCK = 7_105_113_910


def alembic_config() -> Config:
    """Alembic's configuration; ``attributes["connection"]`` is what it migrates."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


@cache
def _revisions() -> tuple[str, ...]:
    """This code's, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def head() -> str:
    """The revision that this code knows as the newest."""
    return _revisions()[0]


def knows(revision: str) -> bool:
    """Whether ``revision`` is one of this code's."""
    return revision in _revisions()


def upgrade(engine: Engine) -> None:
    """See :meth:`models.db.Database.migrate`."""
    try:
        with alone(engine) as connection:
            _upgrade(connection)
    except DBAPIError as error:
        failure = failure_of(error)
        if failure is None:
            raise
        raise failure from error
    except OSError as error:
        raise Unavailable(f"The database's folder cannot be used: {error.filename}: {error.strerror}") from error


def _upgrade(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and not knows(found):
        raise Conflict(
            f"The database has schema {found}, which this Limbeck does not know (its newest is {head()}): "
            "a newer version has written it. Start that one, or restore a backup."
        )
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """One transaction over everything, while every other process that wants to migrate waits. On SQLite no table that
    is rebuilt takes along what refers to it."""
    if engine.dialect.name == "sqlite":
        with _alone_on_sqlite(engine) as connection:
            yield connection
        return
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '120s'"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        yield connection


@contextmanager
def _alone_on_sqlite(engine: Engine) -> Iterator[Connection]:
    file = Path(engine.url.database or "")
    file.parent.mkdir(parents=True, exist_ok=True)
    # A lock beside the file: the change to WAL does not wait for other connections but fails.
    with file.with_name(file.name + ".migrating").open("w") as lock, engine.connect() as connection:
        fcntl.flock(lock, fcntl.LOCK_EX)
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA journal_mode = WAL")
        # Rebuilding a table (SQLite's way to alter one) drops the old one, which would cascade into its children. The
        # switch has no effect inside a transaction, so it is thrown before.
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    raise Conflict(f"The migration would leave rows that point nowhere: {broken[:5]}")
        finally:
            driver.execute("PRAGMA foreign_keys = ON")
