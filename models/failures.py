"""Which errors of a driver mean that the database is away or full, and which are our own mistake."""

from __future__ import annotations

import sqlite3

import psycopg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from limbeck.errors import LimbeckError, StorageFull, Unavailable


def failure_of(error: DBAPIError | PoolTimeout) -> LimbeckError | None:
    """The error to raise instead of ``error``; ``None`` where the statement itself is at fault."""
    if isinstance(error, PoolTimeout):
        return Unavailable("The database is busy: no connection became free in time.")
    cause = error.orig
    if takes_no_writes(cause):
        if not error.connection_invalidated:  # a session for reading has tried to write
            return None
        return Unavailable(f"The database takes no writes: {_first_line(cause)}")
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause)
    if isinstance(cause, psycopg.errors.DiskFull):
        return StorageFull("The database's disk is full.")
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return Unavailable(f"The database does not answer: {_first_line(cause)}")
    return None


def takes_no_writes(cause: BaseException | None) -> bool:
    """Whether a write was refused because the transaction, or the whole database, is for reading only."""
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) == sqlite3.SQLITE_READONLY
    return isinstance(cause, psycopg.errors.ReadOnlySqlTransaction)


def plan_is_stale(cause: BaseException | None) -> bool:
    """Whether PostgreSQL refuses what this connection has prepared: a migration has changed a column since."""
    return isinstance(cause, psycopg.errors.FeatureNotSupported)


def _sqlite_code(cause: sqlite3.Error) -> int | None:
    """The primary code; the bits above say which kind of it."""
    code = getattr(cause, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _of_sqlite(cause: sqlite3.Error) -> LimbeckError | None:
    match _sqlite_code(cause):
        case sqlite3.SQLITE_FULL:
            return StorageFull("The database's disk is full.")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return Unavailable("The database is busy: another process holds its write lock.")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR:
            return Unavailable(f"The database file cannot be used: {cause}")
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return Unavailable(f"The database file is damaged: {cause}")
        case _:
            return None


def _first_line(cause: object) -> str:
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
