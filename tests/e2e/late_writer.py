"""A worker's writes that were held up: connects, says so, waits for a line, then writes under the fence that it was
given; prints what became of each write. ``python late_writer.py JOB FENCE``"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from limbeck.errors import LeaseLost, Unavailable
from models.db import Database
from models.settings import Settings
from worker import lease
from worker.lease import Lease
from worker.telemetry import Batch

PATIENCE_SECONDS = 30.0


def attempt(database: Database, write: Callable[[Session], Any]) -> str:
    """What becomes of the write once the database answers again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with database.session() as session:
                write(session)
        except LeaseLost:
            return "refused"
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return "written"


def main() -> None:
    database = Database(Settings())
    database.ping()
    held = Lease(sys.argv[1], int(sys.argv[2]))
    writes: dict[str, Callable[[Session], Any]] = {
        "beat": lambda session: lease.beat(session, held, 600),
        "record": lambda session: lease.record(session, held, Batch(stage="teacher", progress={"step": 9_999})),
        "checkpoint": lambda session: lease.commit_checkpoint(session, held, {"step": 9_999, "files": {}}),
        "end": lambda session: lease.hold(session, held),
    }
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for name, write in writes.items():
        sys.stdout.write(f"{name} {attempt(database, write)}\n")


if __name__ == "__main__":
    main()
