"""Alembic's way into Limbeck. ``Database.migrate()`` hands its connection in; the command line opens one itself.

``alembic -c migrations/alembic.ini revision --autogenerate -m "…"`` writes the next revision against the database of
``LIMBECK_DATABASE_URL``.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from models.engine import open_engine
from models.schema import alone
from models.settings import Settings
from models.tables import METADATA


def _run(connection: Connection) -> None:
    # Batch mode: SQLite alters most things only by rebuilding the table.
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    given = context.config.attributes.get("connection")
    if given is not None:
        _run(given)
        return
    with alone(open_engine(Settings().database_url)) as connection:
        _run(connection)


main()
