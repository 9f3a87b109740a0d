"""Six processes claim from the same 300 rows at once: each row has one winner."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from models.db import Database
from models.job import Job
from models.settings import Settings
from tests.worker.conftest import submit

PROCESSES, JOBS = 6, 300
RACER = """
import sys
from models.db import Database
from models.settings import Settings
from worker.lease import Holder, claim

database = Database(Settings(data_dir=sys.argv[1], database_url=sys.argv[2]))
database.ping()
print("ready", flush=True)
sys.stdin.readline()
while True:
    with database.session() as session:
        claimed = claim(session, Holder(sys.argv[3], "race", 1), lease_seconds=60, gpus=0)
    if claimed is None:
        break
    print(claimed.job.id, claimed.lease.fence, flush=True)
"""


def test_300_jobs_have_300_winners(either: Database, on_both: Settings) -> None:
    """Guards against two workers that run the same job."""
    first = submit(either)
    with either.session() as session:  # in one go: submitting is not what is raced here
        row = {c.key: getattr(first, c.key) for c in Job.__mapper__.column_attrs}
        session.add_all(Job(**(row | {"id": f"job_{i:03}"})) for i in range(JOBS - 1))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(on_both.data_dir), on_both.database_url, f"racer {i}"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0].splitlines() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * PROCESSES
    winners = Counter(line.split()[0] for lines in said for line in lines)
    assert len(winners) == JOBS
    assert set(winners.values()) == {1}
    assert sum(1 for lines in said if lines) > 1, "one process took everything: there was no race"
