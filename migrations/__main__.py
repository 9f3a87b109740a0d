"""``python -m migrations``: bring the database of ``LIMBECK_DATABASE_URL`` up to date, and end."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from limbeck.errors import LimbeckError
from models import schema
from models.db import Database
from models.settings import Settings, complaint, refuse


def main() -> int:
    """0 where the schema is the newest now, 1 where the database does not allow it, 2 where the settings are wrong."""
    try:
        database = Database(Settings())
        try:
            database.migrate()
        finally:
            database.dispose()
    except ValidationError as error:
        return refuse(complaint(error))
    except LimbeckError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"The database has schema {schema.head()}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
