"""Events, metrics and logs, on both databases."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from limbeck.errors import NotFound
from models.db import Database
from models.repository import jobs, telemetry
from models.repository.telemetry import Point
from tests.models.conftest import Submit


def test_events_are_numbered_without_gaps_by_writers_at_once(database: Database, submit: Submit) -> None:
    """A reader goes on after the last number that it saw: a number that commits late would never be seen."""
    job = submit()

    def write(index: int) -> None:
        with database.session() as session:
            telemetry.append_event(session, job.id, "k", f"event {index}", {"index": index})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(30)))
    with database.reading() as session:
        events = telemetry.events_after(session, job.id, 0, 100)
        rest = telemetry.events_after(session, job.id, 29, 100)
    assert [event.sequence for event in events] == list(range(1, 32))
    assert [event.sequence for event in rest] == [30, 31]
    assert {event.data.get("index") for event in events} == {None, *range(30)}


def test_an_event_goes_with_the_write_that_it_tells_of(database: Database, submit: Submit) -> None:
    """An event of something that was rolled back tells of what never was; its number would leave a gap."""
    job = submit()
    with suppress(KeyError), database.session() as session:
        telemetry.append_event(session, job.id, "k", "never", {})
        raise KeyError
    with database.session() as session:
        assert telemetry.append_event(session, job.id, "k", "now", {}).sequence == 2
        with pytest.raises(NotFound):
            telemetry.append_event(session, "job_none", "k", "m", {})


def test_every_event_changes_the_jobs_version(database: Database, submit: Submit) -> None:
    """A poller with an ETag would be told 304 for ever."""
    job = submit()
    with database.session() as session:
        telemetry.append_event(session, job.id, "k", "m", {})
    with database.reading() as session:
        assert jobs.get(session, job.id).version == job.version + 1


def test_points_that_are_written_again_get_the_new_value(database: Database, submit: Submit) -> None:
    """A resumed attempt repeats steps; two values for one step would draw a saw."""
    job = submit()
    with database.session() as session:
        telemetry.add_metrics(session, job.id, [Point("loss", 1, 1.0), Point("loss", 2, 2.0), Point("loss", 2, 2.5)])
        telemetry.add_metrics(
            session, job.id, [Point("loss", 2, 3.0), Point("loss", 3, math.nan), Point("acc", 1, 0.5)]
        )
        telemetry.add_metrics(session, job.id, [])
    with database.reading() as session:
        found = telemetry.metrics(session, job.id, 100)
    assert {series: [(point["step"], point["value"]) for point in points] for series, points in found.items()} == {
        "acc": [(1, 0.5)],
        "loss": [(1, 1.0), (2, 3.0)],
    }


def test_thinning_keeps_the_ends_and_the_spike(database: Database, submit: Submit) -> None:
    """Every n-th point would lose the one step at which the loss exploded."""
    job = submit()
    values = [math.sin(step / 50) for step in range(3000)]
    values[1234] = 99.0
    values[2345] = -99.0
    with database.session() as session:
        telemetry.add_metrics(session, job.id, [Point("loss", step, value) for step, value in enumerate(values)])
        telemetry.add_metrics(session, job.id, [Point("short", step, 1.0) for step in range(50)])
    with database.reading() as session:
        found = telemetry.metrics(session, job.id, 50)
    steps = [point["step"] for point in found["loss"]]
    assert len(steps) <= 50
    assert len(steps) >= 40
    assert steps == sorted(set(steps))
    assert {0, 1234, 2345, 2999} <= set(steps)
    assert len(found["short"]) == 50


def test_a_log_comes_back_in_the_order_of_writing_whatever_is_in_it(database: Database, submit: Submit) -> None:
    """A progress bar or a crash may print anything, also bytes that PostgreSQL refuses; the log is then needed most."""
    job, other = submit(), submit()
    pieces = [f"line {index}\n" for index in range(150)]
    with database.session() as session:
        for piece in pieces:
            telemetry.add_log(session, job.id, 1, piece)
            telemetry.add_log(session, other.id, 1, "other")
        telemetry.add_log(session, job.id, 2, "nul \x00 and half \ud83d\n")
    with database.reading() as session:
        text = "".join(telemetry.read_log(session, job.id))
        size = telemetry.log_size(session, job.id)
    assert text == "".join(pieces) + "nul \ufffd and half \ufffd\n"
    assert size == len(text)


def test_data_with_nan_and_nul_is_stored_as_json(database: Database, submit: Submit) -> None:
    """JSON has neither; the write would fail, and with it the attempt that only wanted to tell."""
    job = submit()
    with database.session() as session:
        telemetry.append_event(session, job.id, "k", "a\x00b", {"value": math.inf, "text": ["\x00", "😀", "\\u0000"]})
    with database.reading() as session:
        event = telemetry.events_after(session, job.id, 1, 1)[0]
    assert (event.message, event.data) == ("a\ufffdb", {"value": None, "text": ["\ufffd", "😀", "\\u0000"]})
