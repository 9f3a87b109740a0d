"""Health, readiness and numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from api.deps import Services
from api.readiness import Readiness
from limbeck.errors import Unavailable
from models.job import JobStatus
from tests.api.conftest import become, connect


def test_a_service_that_works_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert set(ready.json()["checks"]) == {"database", "storage", "broker"}
    for path in ("/healthz", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_database_without_its_tables_is_not_ready_and_says_why(client: TestClient, house: Services) -> None:
    house.database.dispose()
    for file in Path(house.settings.data_dir).glob("limbeck.db*"):
        file.unlink()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert not answer.json()["checks"]["database"]["ok"]
    assert answer.json()["checks"]["database"]["detail"]
    assert client.get("/healthz").status_code == 200


def test_a_storage_that_is_away_is_not_ready(client: TestClient, house: Services) -> None:
    class Away:
        def ping(self) -> None:
            raise Unavailable("The bucket does not answer.")

    object.__setattr__(house, "storage", Away())
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["storage"] == {"ok": False, "detail": "The bucket does not answer."}


def test_what_hangs_is_asked_by_one_thread_and_keeps_nobody() -> None:
    """Guards every route that a thread answers: a bucket that takes connections and says nothing held each look for two
    minutes, and a probe every two seconds so held all forty threads; and replicas that answer with what they have
    loaded, which were taken out by a balancer that does not wait so long."""
    asked, go = list[float](), threading.Event()

    def hang() -> str:
        asked.append(time.monotonic())
        go.wait(60)
        return "answers"

    readiness = Readiness({"storage": hang}, lasting=True)
    readiness._was_ready = True
    began = time.monotonic()
    first = readiness.look()
    late = time.monotonic() - began
    with ThreadPoolExecutor(8) as pool:
        views = [first, *(one.result() for one in [pool.submit(readiness.look) for _ in range(8)])]
    again = time.monotonic() - began - late
    go.set()
    assert 1.5 < late < 10
    assert again < 1
    assert len(asked) == 1
    assert {(view.status, view.checks["storage"].ok) for view in views} == {("degraded", False)}
    assert "has not answered for" in views[-1].checks["storage"].detail
    assert until(lambda: readiness.look().status == "ok")


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_broker_that_is_away_is_told_and_keeps_the_service_ready(client: TestClient, house: Services) -> None:
    """Submit works without it; a load balancer that took the API out would turn a small fault into an outage."""
    house.bell.fault = "Connection refused"
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert "Connection refused" in answer.json()["checks"]["broker"]["detail"]


def test_metrics_count_jobs_by_status_and_requests_by_route(
    client: TestClient, house: Services, submit: Callable[..., dict[str, Any]]
) -> None:
    """Ids in the labels would make a new series of every job."""
    jobs = [submit()["id"] for _ in range(3)]
    become(house, jobs[0], JobStatus.RUNNING)
    connect(house)
    for job in jobs:
        client.get(f"/v1/jobs/{job}")
    client.get("/nowhere")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'limbeck_jobs{status="queued"} 2.0' in lines
    assert 'limbeck_jobs{status="running"} 1.0' in lines
    assert 'limbeck_jobs{status="paused"} 0.0' in lines
    assert 'limbeck_teacher_parts{state="free"} 0.0' in lines
    assert 'limbeck_worker_jobs{worker="worker:1"} 0.0' in lines
    assert 'limbeck_attempts_last_hour{outcome="lost"} 0.0' in lines
    assert {"limbeck_workers 1.0", "limbeck_jobs_overdue 0.0"} <= set(lines)
    (wait,) = (line.split()[1] for line in lines if line.startswith("limbeck_jobs_longest_wait_seconds "))
    assert 0 < float(wait) < 60
    assert 'limbeck_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 3.0' in lines
    assert 'limbeck_http_requests_total{method="GET",route="none",status="404"} 1.0' in lines
    assert not any(job in answer.text for job in jobs)


def test_metrics_are_told_while_the_database_is_away(client: TestClient, house: Services) -> None:
    """Guards the counters just when they are looked for."""
    assert "limbeck_database_up 1.0" in client.get("/metrics").text.splitlines()
    house.database.dispose()
    file = Path(house.settings.data_dir) / "limbeck.db"
    file.rename(file.with_name("away"))
    file.mkdir()
    lines = client.get("/metrics").text.splitlines()
    assert "limbeck_database_up 0.0" in lines
    assert any(line.startswith("limbeck_http_requests_total{") for line in lines)


def test_the_front_door_says_where_things_are(client: TestClient) -> None:
    assert client.get("/").json()["docs"] == "/docs"
