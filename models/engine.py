"""Engines as Limbeck needs them: real transactions on SQLite, bounded waits on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    PoolProxiedConnection,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError

from limbeck.errors import InvalidInput
from models.failures import plan_is_stale, takes_no_writes
from models.text import to_json

_ALLOWED = "sqlite:///… and postgresql+psycopg://…"
_READ_ONLY = "limbeck_read_only"

_SQLITE_BUSY_SECONDS = 15

#: More threads than the overflow allows wait for a connection, ten seconds at most.
_SHARED: dict[str, Any] = {"pool_size": 8, "max_overflow": 32, "pool_timeout": 10, "json_serializer": to_json}

#: libpq's parameters: a server that is gone is noticed within seconds, also in the middle of a query (a network that
#: was cut sends no reset), and a process that was stopped within a transaction does not hold its row locks for ever.
_POSTGRES: dict[str, str] = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "limbeck",
    "options": "-c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=30s",
}


def database_address(address: str) -> URL:
    """
    Raises:
        InvalidInput: the address is none, or of another database.
    """
    try:
        url = make_url(address)
    except ArgumentError as error:  # the address may hold a password: not even its beginning is shown
        raise InvalidInput(f"LIMBECK_DATABASE_URL is no address; allowed: {_ALLOWED}") from error
    if url.get_backend_name() not in ("sqlite", "postgres", "postgresql"):
        raise InvalidInput(f"LIMBECK_DATABASE_URL begins with {url.drivername!r}; allowed: {_ALLOWED}")
    if url.get_backend_name() == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise InvalidInput("LIMBECK_DATABASE_URL names no file, and processes share no memory; allowed: sqlite:///file")
    return url


def open_engine(address: str) -> Engine:
    """Build an engine, without connecting yet. ``postgres://`` and ``postgresql://`` mean psycopg 3.

    Parameters in the address go before Limbeck's own.

    Raises:
        InvalidInput: the address is of another database.
    """
    url = database_address(address)
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url)
    return _open_postgres(url.set(drivername="postgresql+psycopg"))


def absent_file(address: str) -> Path | None:
    """The file of an embedded database that is not there: whoever asked it would make an empty one."""
    url = database_address(address)
    if url.get_backend_name() != "sqlite" or not url.database or Path(url.database).is_file():
        return None
    return Path(url.database)


def read_only(engine: Engine) -> Engine:
    """The same pool, with transactions that cannot write and see one state."""
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":  # which else shows each statement what was committed before it
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    return engine.execution_options(**options, **{_READ_ONLY: True})


def _open_postgres(url: URL) -> Engine:
    arguments = {name: value for name, value in _POSTGRES.items() if name not in url.query}
    engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_recycle=1800, **_SHARED)
    event.listen(engine, "handle_error", _leave_what_is_worn_out)
    return engine


def _open_sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _SQLITE_BUSY_SECONDS}, **_SHARED)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "handle_error", _leave_what_is_worn_out)
    return engine


def _leave_what_is_worn_out(context: ExceptionContext) -> None:
    if context.connection is None:
        return
    cause = context.original_exception
    # A server that has become a standby keeps its connections, and a file that was opened while it could not be
    # written stays so: only a new connection finds that writes are taken again.
    reading = context.connection.get_execution_options().get(_READ_ONLY)
    if plan_is_stale(cause) or (takes_no_writes(cause) and not reading):
        context.is_disconnect = True


def _configure_sqlite(connection: Any, record: PoolProxiedConnection) -> None:
    # sqlite3 would begin only at the first INSERT, UPDATE or DELETE and leave SELECT and DDL outside of it.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # With WAL this loses at most the last commits when the power fails, and never corrupts.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reading else 'OFF'}")
    # A deferred transaction that has read cannot become a writer once another process has written: SQLite answers
    # SQLITE_BUSY at once, whatever the timeout. So writers are writers from the start.
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
