"""``python -m benchmarks.chaos.unfenced_worker``: the worker with its fence and its lease's end taken out.

The negative control of the chaos test: what claims, trains and writes is the same, but a write goes through whoever has
the job now, and nobody stops because the lease ran out. It is here and not in the product, which has no such switch.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from sqlalchemy import ColumnElement

from models.job import Job, JobStatus
from worker import heart
from worker import lease as leases
from worker.__main__ import main
from worker.lease import Lease, Wish


class _AlwaysGoOn(dict[JobStatus, Wish]):
    def __missing__(self, status: JobStatus) -> Wish:
        return Wish.GO_ON


def _whoever_it_is(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == lease.job_id,)


class _Never:
    """A deadline that never comes, whatever is assigned to it."""

    def __get__(self, instance: Any, owner: Any) -> float:
        return math.inf

    def __set__(self, instance: Any, value: float) -> None:
        return None


def take_the_fence_out() -> None:
    """Change the worker's modules within this process."""
    leases.WISHES = _AlwaysGoOn(leases.WISHES)
    leases._mine = _whoever_it_is
    heart.Heart.deadline = _Never()  # type: ignore[assignment]


if __name__ == "__main__":
    take_the_fence_out()
    sys.exit(main())
