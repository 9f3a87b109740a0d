"""A worker's writes that were held up: connects, says so, waits for a line, then writes under the fence that it was
given; prints what became of each write. ``python late_writer.py JOB FENCE``"""

from __future__ import annotations

import sys

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from limbeck.errors import LeaseLost
from models.db import Database
from models.settings import Settings
from worker import lease
from worker.lease import Lease
from worker.telemetry import Batch

if __name__ == "__main__":
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
    database.dispose()  # those connections are as dead as the link was
    for name, write in writes.items():
        try:
            with database.session() as session:
                write(session)
            sys.stdout.write(f"{name} written\n")
        except LeaseLost:
            sys.stdout.write(f"{name} refused\n")
