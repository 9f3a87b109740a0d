"""The database as one object: sessions, migrations, and an honest answer when it is away.

SQLite and PostgreSQL differ here and nowhere else. Every session is one transaction::

    with database.session() as session:      # may write
        ...
    with database.reading() as session:      # cannot write, and never waits for a writer
        ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from limbeck.errors import Conflict, Unavailable
from models import engine as engines
from models import schema
from models.failures import failure_of
from models.settings import Settings


class Database:
    """Where the rows are. One per process; safe for threads, not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self.engine: Engine = engines.open_engine(settings.database_url)
        self._writing = sessionmaker(self.engine, expire_on_commit=False)
        self._reading = sessionmaker(engines.read_only(self.engine), expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction that may write: committed when the block ends, rolled back when it raises.

        On SQLite it takes the write lock with its first statement, so that reading and then writing cannot fail in
        the middle. What it yields stays readable after the commit.

        Raises:
            Unavailable: the database is away, or was busy for too long; nothing was written.
            StorageFull: its disk is full; nothing was written.
        """
        with _one_transaction(self._writing) as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one consistent state and cannot write. Use it for every GET.

        Raises:
            Unavailable: the database is away.
        """
        with _one_transaction(self._reading) as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to the one that this code knows. Processes that start at once wait for the first of them.

        Raises:
            Conflict: a newer Limbeck has written the database.
            Unavailable: the database is away.
        """
        schema.upgrade(self.engine)

    def ping(self) -> None:
        """Return if the database answers and has a schema that this code can work with: its own or, while a deployment
        is under way, a newer one.

        Raises:
            Unavailable: it does not, or its schema is an older one.
        """
        found = self._revision()
        if found is None or (found != schema.head() and schema.knows(found)):
            raise Unavailable(f"{_other_schema(found)}; `limbeck up` or `python -m migrations` brings it up to date.")

    def require_schema(self) -> None:
        """Return if the schema is the one that this code knows; nothing is changed.

        Raises:
            Conflict: it is an older or a newer one.
            Unavailable: the database is away, or has none.
        """
        found = self._revision()
        if found != schema.head():
            raise Conflict(
                f"{_other_schema(found)}; `limbeck up` or `python -m migrations` brings an older one up to date."
            )

    def _revision(self) -> str | None:
        try:
            with self.reading() as session:
                found: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
        except DBAPIError as error:
            first = str(error.orig).splitlines()[0]
            raise Unavailable(f"The database has no schema yet: {first}") from error
        return found

    def dispose(self) -> None:
        """Close the pool's connections."""
        self.engine.dispose()


def _other_schema(found: str | None) -> str:
    return f"The database has schema {found}, and this Limbeck works with {schema.head()}"


@contextmanager
def _one_transaction(factory: sessionmaker[Session]) -> Iterator[Session]:
    try:
        with factory.begin() as session:
            yield session
    except (DBAPIError, PoolTimeout) as error:
        failure = failure_of(error)
        if failure is None:
            raise
        raise failure from error
