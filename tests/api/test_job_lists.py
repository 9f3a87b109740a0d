"""Lists of jobs over HTTP: their pages and filters, and what they tell of a job's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.deps import Services
from models.job import JobStatus
from tests.api.conftest import become

Submit = Callable[..., dict[str, Any]]


def pointers(answer: Any) -> list[str]:
    return [one["pointer"] for one in answer.json()["errors"]]


def test_pages_give_every_job_once_newest_first(client: TestClient, submit: Submit) -> None:
    made = [submit()["id"] for _ in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page = client.get("/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
    assert cursor is None
    assert seen == made[::-1]


def test_lists_tell_the_same_place_in_the_queue_as_the_jobs_themselves(client: TestClient, submit: Submit) -> None:
    for priority, owner in ((0, "a"), (5, "a"), (0, "b"), (5, "b")):
        submit(priority=priority, owner=owner)
    listed = client.get("/v1/jobs").json()["data"]
    assert sorted(job["queue_position"] for job in listed) == [1, 2, 3, 4]
    for job in listed:
        assert client.get(f"/v1/jobs/{job['id']}").json()["queue_position"] == job["queue_position"]


def test_filters_leave_only_what_matches(client: TestClient, house: Services, submit: Submit) -> None:
    plain = submit()["id"]
    tagged = submit(metadata={"team": "a", "run": "1"}, method="none")["id"]
    become(house, plain, JobStatus.RUNNING)

    def ids(**params: str) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=params).json()["data"]]

    assert ids(status="running") == [plain]
    assert ids(method="none") == [tagged]
    assert ids(**{"metadata[team]": "a", "metadata[run]": "1"}) == [tagged]
    assert ids(**{"metadata[team]": "a", "metadata[run]": "2"}) == []
    assert ids(status="paused") == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("state=running", "/state"),
        ("status=runing", "/status"),
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("cursor=nonsense", "/cursor"),
        ("metadata[a]=1&metadata[a]=2", "/metadata[a]"),
    ],
)
def test_a_filter_that_is_not_understood_is_refused_and_not_passed_over(
    client: TestClient, query: str, pointer: str
) -> None:
    answer = client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert pointers(answer) == [pointer]
