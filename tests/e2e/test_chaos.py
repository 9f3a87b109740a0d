"""A short run of ``benchmarks.chaos`` on the stack that production has; the long ones are in docs/reliability.md."""

from __future__ import annotations

import pytest

from benchmarks.chaos.plan import Plan
from benchmarks.chaos.run import run
from tests.conftest import absent
from tests.services import ServiceMissing


@pytest.mark.services
def test_six_jobs_outlive_six_faults() -> None:
    """Guards against a job that is lost, or done twice, when processes and servers die under it."""
    try:
        report = run(Plan(jobs=6, faults=6, broker="redis", database="postgres", seed=3, epochs=4))
    except ServiceMissing as missing:
        absent(str(missing))
        return
    assert report.failures == []
