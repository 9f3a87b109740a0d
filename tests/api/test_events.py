"""What a job tells: events without gaps, streams that end, and one poller for all watchers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text, update
from structlog.testing import capture_logs

from api.deps import Services
from api.streams import Streams
from models.db import Database
from models.job import Job, JobStatus
from models.repository import jobs, telemetry
from models.settings import Settings
from tests.api.conftest import become

STREAM = {"Accept": "text/event-stream"}
Submit = Callable[..., dict[str, Any]]


def tell(database: Database, job_id: str, count: int) -> None:
    with database.session() as session:
        for number in range(count):
            telemetry.append_event(session, job_id, "teacher.evaluated", f"note {number}", {"number": number})


def parse(text: str) -> list[dict[str, str]]:
    blocks = [block.splitlines() for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block) for block in blocks]


@pytest.mark.parametrize("parameter", ["after", "cursor"])
def test_pages_of_events_lose_none(client: TestClient, house: Services, submit: Submit, parameter: str) -> None:
    """Guards also against the first page for ever, for who goes on by ``cursor`` as in every other list."""
    job = submit()["id"]
    tell(house.database, job, 6)
    seen, after = [], 0
    for _ in range(3):
        page = client.get(f"/v1/jobs/{job}/events", params={parameter: after, "limit": 3}).json()
        seen += [one["sequence"] for one in page["data"]]
        after = int(page["next_cursor"] or 0)
    assert seen == list(range(1, 8))
    assert page["data"][0]["kind"] == "teacher.evaluated"
    assert not page["has_more"]


def test_the_stream_of_an_ended_job_gives_everything_and_ends(
    client: TestClient, house: Services, submit: Submit
) -> None:
    job = submit()["id"]
    tell(house.database, job, 700)  # more than a page
    become(house, job, JobStatus.SUCCEEDED)
    answer = client.get(f"/v1/jobs/{job}/events", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"].startswith("no-cache")
    numbered = [one for one in parse(answer.text) if "id" in one]
    assert [int(one["id"]) for one in numbered] == list(range(1, 703))
    assert (numbered[0]["event"], numbered[-1]["event"]) == ("job.queued", "job.succeeded")
    assert json.loads(numbered[5]["data"])["data"] == {"number": 4}


def test_a_stream_goes_on_behind_the_last_event_that_its_reader_has(
    client: TestClient, house: Services, submit: Submit
) -> None:
    job = submit()["id"]
    tell(house.database, job, 5)
    become(house, job, JobStatus.FAILED)
    answer = client.get(f"/v1/jobs/{job}/events", headers={**STREAM, "Last-Event-ID": "5"})
    assert [one["id"] for one in parse(answer.text) if "id" in one] == ["6", "7"]
    odd = client.get(f"/v1/jobs/{job}/events", headers={**STREAM, "Last-Event-ID": "x" * 30})
    assert [one["id"] for one in parse(odd.text) if "id" in one] == [str(number) for number in range(1, 8)]


def test_a_browser_that_has_everything_is_told_not_to_come_back(
    client: TestClient, house: Services, submit: Submit
) -> None:
    """An EventSource connects again for ever after a stream that ends; only 204 stops it."""
    job = submit()["id"]
    become(house, job, JobStatus.FAILED)
    assert client.get(f"/v1/jobs/{job}/events", headers={**STREAM, "Last-Event-ID": "2"}).status_code == 204


def test_a_stream_of_no_job_is_404(client: TestClient) -> None:
    answer = client.get("/v1/jobs/job_none/events", headers=STREAM)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == 404


@pytest.fixture
def database(settings: Settings, tmp_path: Path) -> Any:
    database = Database(settings)
    database.migrate()
    yield database
    database.dispose()


def make_job(database: Database) -> str:
    with database.session() as session:
        job, _ = jobs.submit(
            session,
            name="a job",
            owner="default",
            priority=0,
            config={"teacher": {"source": "a"}, "dataset": {"source": "b"}},
            method="kd",
            labels={},
            webhook_url=None,
            idempotency_key=None,
            request_hash="h",
            gpus=0,
            max_attempts=3,
        )
        return job.id


def move(database: Database, job_id: str, status: JobStatus, step: int | None = None) -> None:
    with database.session() as session:
        progress = None if step is None else {"step": step}
        session.execute(update(Job).where(Job.id == job_id).values(status=status, progress=progress))
        if step is None:
            telemetry.append_event(session, job_id, f"job.{status.value}", "…", {})


async def collect(stream: AsyncIterator[bytes], into: list[dict[str, str]]) -> None:
    async for block in stream:
        into += parse(block.decode())


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def test_watchers_see_events_and_progress_as_they_happen(database: Database) -> None:
    async def scenario() -> None:
        job = make_job(database)
        async with Streams(database, poll_seconds=0.02).running() as streams:
            early: list[dict[str, str]] = []
            watching = asyncio.create_task(collect(streams.watch(job, 0), early))
            await until(lambda: any(one["event"] == "job.queued" for one in early))
            move(database, job, JobStatus.RUNNING)
            await until(lambda: any(one["event"] == "job.running" for one in early))
            move(database, job, JobStatus.RUNNING, step=7)
            await until(lambda: any('"step": 7' in one["data"] for one in early))
            late: list[dict[str, str]] = []
            second = asyncio.create_task(collect(streams.watch(job, 1), late))
            await until(lambda: any(one.get("id") == "2" for one in late))
            move(database, job, JobStatus.SUCCEEDED)
            await asyncio.wait_for(asyncio.gather(watching, second), 5)
            assert [one["id"] for one in early if "id" in one] == ["1", "2", "3"]
            assert [one["id"] for one in late if "id" in one] == ["2", "3"]
            assert all("id" not in one for one in early if one["event"] == "progress")
            assert early[-1]["event"] == "job.succeeded"
            assert streams.open == 0

    asyncio.run(scenario())


def test_a_thousand_streams_cost_one_query_a_poll(database: Database) -> None:
    async def scenario() -> int:
        queries = 0

        def count(*_: Any) -> None:
            nonlocal queries
            queries += 1

        watched = [make_job(database) for _ in range(10)]
        async with Streams(database, poll_seconds=0.05).running() as streams:
            seen: list[list[dict[str, str]]] = [[] for _ in range(1_000)]
            tasks = [
                asyncio.create_task(collect(streams.watch(watched[number % 10], 0), seen[number]))
                for number in range(1_000)
            ]
            await until(lambda: all(any("id" in one for one in blocks) for blocks in seen), 30)
            assert streams.open == 1_000
            event.listen(database.engine, "before_cursor_execute", count)
            await asyncio.sleep(0.5)
            event.remove(database.engine, "before_cursor_execute", count)
            for job in watched:
                move(database, job, JobStatus.CANCELLED)
            await asyncio.wait_for(asyncio.gather(*tasks), 20)
            assert all([one["id"] for one in blocks if "id" in one] == ["1", "2"] for blocks in seen)
        return queries

    # Every poll is BEGIN, PRAGMA and one SELECT at the most.
    assert asyncio.run(scenario()) <= 3 * 11


def test_a_burst_of_events_reaches_every_watcher_once_and_in_order(database: Database) -> None:
    """More events between two polls than the poller keeps: watchers have to notice the gap and read again."""

    async def scenario() -> None:
        job = make_job(database)
        async with Streams(database, poll_seconds=0.02).running() as streams:
            seen: list[list[dict[str, str]]] = [[], [], []]
            tasks = [asyncio.create_task(collect(streams.watch(job, 0), blocks)) for blocks in seen]
            await until(lambda: all(any("id" in one for one in blocks) for blocks in seen))
            for size in (1, 150, 3, 900, 250):
                await asyncio.to_thread(tell, database, job, size)
                await asyncio.sleep(0.03)
            await asyncio.to_thread(move, database, job, JobStatus.FAILED)
            await asyncio.wait_for(asyncio.gather(*tasks), 20)
            expected = [str(number) for number in range(1, 1 + 1304 + 1 + 1)]
            for blocks in seen:
                assert [one["id"] for one in blocks if "id" in one] == expected

    asyncio.run(scenario())


def test_a_silent_stream_is_kept_open_by_comments(database: Database) -> None:
    async def scenario() -> None:
        job = make_job(database)
        async with Streams(database, poll_seconds=0.02, comment_seconds=0.1).running() as streams:
            blocks = []
            async for block in streams.watch(job, 1):
                blocks.append(block)
                if len(blocks) == 3:
                    break
            assert blocks[1:] == [b": still there\n\n"] * 2

    asyncio.run(scenario())


def test_a_job_that_is_deleted_ends_its_streams(database: Database) -> None:
    async def scenario() -> None:
        job = make_job(database)
        async with Streams(database, poll_seconds=0.02).running() as streams:
            seen: list[dict[str, str]] = []
            watching = asyncio.create_task(collect(streams.watch(job, 0), seen))
            await until(lambda: any(one["event"] == "progress" for one in seen))
            with database.session() as session:
                session.delete(jobs.get(session, job))
            await asyncio.wait_for(watching, 5)

    asyncio.run(scenario())


def test_streams_outlive_a_database_that_is_away_for_a_moment(database: Database, tmp_path: Path) -> None:
    async def scenario() -> None:
        job = make_job(database)
        async with Streams(database, poll_seconds=0.02).running() as streams:
            seen: list[dict[str, str]] = []
            watching = asyncio.create_task(collect(streams.watch(job, 0), seen))
            await until(lambda: any(one["event"] == "progress" for one in seen))
            with database.engine.connect() as connection:
                connection.exec_driver_sql("ALTER TABLE jobs RENAME TO away")
                connection.commit()
                await asyncio.sleep(0.1)
                connection.exec_driver_sql("ALTER TABLE away RENAME TO jobs")
                connection.commit()
            move(database, job, JobStatus.FAILED)
            await asyncio.wait_for(watching, 5)

    asyncio.run(scenario())


def test_streams_outlive_a_job_that_this_version_cannot_read(database: Database) -> None:
    """Guards against streams that stay open and tell nothing any more: during an upgrade a newer process may write what
    this one has no word for. The log has the traceback once."""

    async def scenario() -> list[Any]:
        job = make_job(database)
        async with Streams(database, poll_seconds=0.02).running() as streams:
            seen: list[dict[str, str]] = []
            watching = asyncio.create_task(collect(streams.watch(job, 0), seen))
            await until(lambda: any(one["event"] == "progress" for one in seen))
            with capture_logs() as told:
                with database.session() as session:
                    session.execute(text("UPDATE jobs SET status = 'hibernating'"))
                await asyncio.sleep(0.3)
                await asyncio.to_thread(move, database, job, JobStatus.FAILED)
                await asyncio.wait_for(watching, 5)
            return told

    (line,) = asyncio.run(scenario())
    assert isinstance(line["exc_info"], LookupError)


def test_metrics_are_thinned_and_keep_their_peaks(client: TestClient, house: Services, submit: Submit) -> None:
    job = submit()["id"]
    points = [telemetry.Point("distilling/loss", step, 99.0 if step == 137 else 1.0) for step in range(500)]
    with house.database.session() as session:
        telemetry.add_metrics(session, job, points)
    series = client.get(f"/v1/jobs/{job}/metrics?max_points=20").json()["series"]["distilling/loss"]
    assert 4 <= len(series) <= 20
    assert max(series, key=lambda one: float(one["value"]))["step"] == 137
    assert client.get(f"/v1/jobs/{job}/metrics?max_points=1").status_code == 422
    assert client.get("/v1/jobs/job_none/metrics").status_code == 404


def test_the_log_is_text_and_its_tail_begins_with_a_line(client: TestClient, house: Services, submit: Submit) -> None:
    job = submit()["id"]
    assert client.get(f"/v1/jobs/{job}/logs").text == ""
    with house.database.session() as session:
        telemetry.add_log(session, job, 1, "first line\nsecond ")
        telemetry.add_log(session, job, 1, "líne\nthird line\n")
    answer = client.get(f"/v1/jobs/{job}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "first line\nsecond líne\nthird line\n"

    def tail(size: int) -> str:
        return client.get(f"/v1/jobs/{job}/logs?tail_bytes={size}").text

    assert tail(11) == "third line\n"
    assert tail(12) == "third line\n"
    assert tail(16) == "third line\n"
    assert tail(4) == "ine\n"
    assert tail(1000) == answer.text
    assert client.get("/v1/jobs/job_none/logs").status_code == 404


def test_a_scorecard_that_is_not_there_yet_has_a_code_of_its_own(
    client: TestClient, house: Services, submit: Submit
) -> None:
    job = submit()["id"]
    waiting = client.get(f"/v1/jobs/{job}/scorecard")
    assert (waiting.status_code, waiting.json()["code"]) == (404, "not_yet")
    become(house, job, JobStatus.CANCELLED)
    never = client.get(f"/v1/jobs/{job}/scorecard")
    assert (never.status_code, never.json()["code"]) == (404, "not_found")


def test_attempts_of_a_job_that_never_ran_are_an_empty_list(client: TestClient, submit: Submit) -> None:
    assert client.get(f"/v1/jobs/{submit()['id']}/attempts").json()["data"] == []
    assert client.get("/v1/jobs/job_none/attempts").status_code == 404
