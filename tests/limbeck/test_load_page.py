"""What docs/results.md says of ``benchmarks.load``; nothing is loaded."""

from __future__ import annotations

from typing import Any

from benchmarks.load.__main__ import page_part

_SUBMIT = {"count": 100, "median_ms": 14.0, "p95_ms": 19.0, "slowest_ms": 44.0}
_POLL = {
    "clients": 100,
    "seconds": 15.2,
    "answers": 7761,
    "errors": 0,
    "answers_per_second": 510.0,
    "median_ms": 176.0,
    "p95_ms": 359.0,
}


def report(**changes: Any) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.load",
        "machine": {"cpu": "a CPU", "cores": 2, "date": "2026-11-26"},
        "submit": _SUBMIT,
        "poll": _POLL,
        "training": {"status": "running", "steps_while_polled": 7},
        **changes,
    }


def test_every_goal_has_its_row() -> None:
    """The streams were measured and judged, and the page said nothing of them."""
    streams = {"count": 1000, "jobs": 100, "idle_mb": 120.0, "memory_mb": 170.0, "broken": 0}
    text = page_part(report(streams={**streams, "submit": _SUBMIT, "poll": _POLL}))
    assert "| POST /v1/jobs, median of 100 | 14.0 ms | < 50 ms |" in text
    assert "1000 open streams of events (PSS) | 170 MB, without them 120 MB | < 300 MB |" in text
    assert "| GET /v1/jobs/{id} then, 100 clients | 510 answers/s | ≥ 300 answers/s |" in text


def test_streams_that_were_left_out_are_said_to_be() -> None:
    for run in (report(), report(streams=None)):
        assert "| the API process with open streams of events (PSS) | not measured | < 300 MB |" in page_part(run)
