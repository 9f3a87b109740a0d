"""A worker says that it is there, and takes its leave."""

from __future__ import annotations

import signal

from sqlalchemy import select

from models.db import Database
from models.present_worker import PresentWorker
from models.settings import Settings
from tests.worker.processes import until, worker_process


def test_a_worker_is_connected_from_its_start_to_its_end(either: Database, on_both: Settings) -> None:
    """Guards against a job that is told to wait for a worker that is there, and against one that is long gone."""

    def present() -> list[tuple[str, int]]:
        with either.reading() as session:
            return [(one.id, one.gpus) for one in session.scalars(select(PresentWorker))]

    with worker_process(on_both) as worker:
        ((name, gpus),) = until(present)
        assert f":{worker.pid}:" in name
        assert gpus == 0
        worker.send_signal(signal.SIGTERM)
        worker.wait(20)
        assert present() == []
