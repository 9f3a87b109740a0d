"""``python -m models.maintenance gc | backup | restore``: what ``limbeck gc`` and its siblings execute.

Each prints its report as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limbeck.errors import LimbeckError, NotFound
from models.backup import backup, restore
from models.db import Database
from models.engine import absent_file
from models.retention import gc
from models.settings import Settings, complaint, refuse
from models.storage import open_storage


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where it was done, 1 where it could not be, 2 where the settings are wrong."""
    given = _parser().parse_args(arguments)
    try:
        settings = Settings() if given.data_dir is None else Settings(data_dir=given.data_dir)
        report = _act(given, settings)
    except ValidationError as error:
        return refuse(complaint(error))
    except LimbeckError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except (OSError, sqlite3.Error) as error:  # a full disk, a folder of somebody else's, a file that is damaged
        sys.stderr.write(f"`limbeck {given.action}` could not be done: {error}\n")
        return 1
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="limbeck")
    parser.add_argument("--data-dir", type=Path)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("gc").add_argument("--dry-run", action="store_true")
    for name in ("backup", "restore"):
        actions.add_parser(name).add_argument("archive", type=Path)
    return parser


def _act(given: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    if given.action == "backup":
        return asdict(backup(settings, given.archive))
    if given.action == "restore":
        return asdict(restore(settings, given.archive))
    absent = absent_file(settings.database_url)
    if absent is not None:
        raise NotFound(f"There is no database {absent}. Name the folder of a `limbeck up` with --data-dir.")
    database = Database(settings)
    try:
        database.require_schema()  # what a schema names that is not ours would be deleted
        return asdict(gc(database, open_storage(settings), settings, dry_run=given.dry_run))
    finally:
        database.dispose()


if __name__ == "__main__":
    sys.exit(main())
