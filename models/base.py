"""The declarative base, and what SQLite and PostgreSQL have to share: column types, the clock, a filter."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import uuid_utils
from sqlalchemy import JSON, BigInteger, ColumnElement, Dialect, Enum, MetaData, String, Text, bindparam
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean, TypeDecorator

from models.text import storable

#: None is SQL's NULL, not JSON's null.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

_NAMES = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)


def words(kind: type[StrEnum]) -> Enum:
    """A column that holds one of ``kind``'s values as plain text; a row gives the member back."""
    return Enum(
        kind, native_enum=False, length=16, values_callable=lambda members: [member.value for member in members]
    )


class UtcMillis(TypeDecorator[datetime]):
    """A moment as whole milliseconds since the epoch: the same order and arithmetic on both databases."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else round(value.timestamp() * 1000)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(value / 1000, UTC)


class Prose(TypeDecorator[str]):
    """Text from anywhere, such as a log or an exception; characters that no database takes become U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


class db_now(FunctionElement[datetime]):
    """The database's clock, in milliseconds. Leases are judged by this one clock and by no worker's."""

    type = UtcMillis()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(db_now, "postgresql")
def _postgres_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    # clock_timestamp, not now(): now() is the start of the transaction, which may be long ago.
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"


def new_id(prefix: str) -> str:
    """``job_0190…``: a UUIDv7 behind its prefix, so that ids sort by age."""
    return f"{prefix}_{uuid_utils.uuid7()}"


class has_item(FunctionElement[bool]):
    """Whether a JSON object of strings has ``value`` under ``key``; any key, also one with quotes or dots in it."""

    type = Boolean()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], key: str, value: str) -> None:
        super().__init__(column, bindparam(None, key, String()), bindparam(None, value, String()))


@compiles(has_item, "sqlite")
def _sqlite_has_item(element: has_item, compiler: SQLCompiler, **kw: Any) -> str:
    column, key, value = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"EXISTS (SELECT 1 FROM json_each({column}) AS item WHERE item.key = {key} AND item.value = {value})"


@compiles(has_item, "postgresql")
def _postgres_has_item(element: has_item, compiler: SQLCompiler, **kw: Any) -> str:
    column, key, value = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({column} ->> {key}) = {value}"
