"""Jobs over HTTP: what a submit promises, and what a job tells."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.deps import Services
from models.attempt import Attempt
from models.job import JobStatus
from models.repository import jobs
from tests.api.conftest import SMALLEST, become, connect

Submit = Callable[..., dict[str, Any]]


def pointers(answer: Any) -> list[str]:
    return [one["pointer"] for one in answer.json()["errors"]]


def test_a_submit_answers_202_with_the_place_of_the_job_and_every_default_filled_in(client: TestClient) -> None:
    answer = client.post("/v1/jobs", json={**SMALLEST, "metadata": {"team": "a"}, "priority": 3})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["object"] == "job"
    assert (job["status"], job["queue_position"], job["owner"], job["priority"]) == ("queued", 1, "default", 3)
    assert job["config"]["method"]["type"] == "kd"
    assert job["config"]["training"]["seed"] == 42
    assert "name" not in job["config"]
    assert "metadata" not in job["config"]
    assert client.get(answer.headers["location"]).json() == job


def test_a_job_without_a_name_gets_one_that_people_can_tell_apart(submit: Submit) -> None:
    assert submit()["name"] == "kd: minilm-l6 on stdlib-docstrings"
    assert submit(name="  mine ")["name"] == "mine"


def test_a_job_is_called_after_the_names_of_what_was_uploaded(client: TestClient, submit: Submit) -> None:
    """Guards against a list of jobs `kd: mdl_01a2… on ds_01a2…`."""
    rows = "text,label\n" + "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(40))
    uploaded = client.post("/v1/datasets", files={"train": ("reviews.csv", rows)}).json()
    assert submit(dataset=f"dataset:{uploaded['id']}")["name"] == "kd: minilm-l6 on reviews"


def test_the_bell_rings_after_the_commit(submit: Submit, house: Services) -> None:
    """A worker that is woken before the commit finds nothing, and the job waits for the next look."""
    seen = []

    class Listening:
        fault = None

        def ring(self) -> None:
            with house.database.reading() as session:
                seen.append(len(jobs.list_page(session, limit=10, cursor=None).items))

        def close(self) -> None: ...

    object.__setattr__(house, "bell", Listening())
    submit()
    assert seen == [1]


def test_a_repeated_key_answers_the_first_job_and_never_makes_a_second(client: TestClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = client.post("/v1/jobs", json=SMALLEST, headers=key)
    again = client.post("/v1/jobs", json=dict(reversed(SMALLEST.items())), headers=key)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_a_key_with_another_body_is_refused(client: TestClient) -> None:
    key = {"Idempotency-Key": "k"}
    client.post("/v1/jobs", json=SMALLEST, headers=key)
    answer = client.post("/v1/jobs", json={**SMALLEST, "name": "other"}, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_every_problem_of_a_config_is_named_at_once_with_what_is_allowed(client: TestClient) -> None:
    body = {**SMALLEST, "method": "magic", "training": {"epochs": 0}, "shape": 1}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "invalid_config"
    assert sorted(pointers(answer)) == ["/method", "/shape", "/training/epochs"]
    details = {one["pointer"]: one["detail"] for one in answer.json()["errors"]}
    assert "'kd'" in details["/method"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"teacher": "path:/etc"}, "/teacher/source"),
        ({"dataset": {"source": "path:/etc"}}, "/dataset/source"),
        (
            {"training": {"augmentation": {"type": "unlabelled", "source": "path:/etc"}}},
            "/training/augmentation/0/source",
        ),
        (
            {"training": {"augmentation": ["mask_replace", {"type": "unlabelled", "source": "dataset:ds_none"}]}},
            "/training/augmentation/1/source",
        ),
        ({"teacher": "model:mdl_none"}, "/teacher/source"),
        ({"teacher": {"source": "builtin:minilm-l6", "more": ["model:mdl_none"]}}, "/teacher/more/0/source"),
        ({"teacher": {"source": "builtin:minilm-l6", "more": ["path:/etc"]}}, "/teacher/more/0/source"),
        ({"teacher": {"source": "org/a", "more": ["org/b"]}, "method": "theseus"}, "/teacher/more"),
        (
            {"teacher": {"source": "org/a", "more": [{"source": "builtin:minilm-l6", "finetune": False}]}},
            "/teacher/more/0/finetune",
        ),
        ({"dataset": "dataset:ds_none"}, "/dataset/source"),
        ({"student": {"layers": 9}}, "/student/layers"),
        ({"metadata": {"bad key!": "x"}}, "/metadata/bad key!"),
        ({"metadata": {"k": "x" * 501}}, "/metadata/k"),
        ({"webhook_url": "https://example.org"}, "/webhook_url"),
        ({"priority": 101}, "/priority"),
        ({"name": ""}, "/name"),
        ({"name": "a\x00b"}, "/name"),
        ({"dataset": {"source": "org/name", "subset": "\ud800"}}, "/dataset/subset"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_it_waits_in_the_queue(
    client: TestClient, change: dict[str, Any], pointer: str
) -> None:
    body = json.dumps({**SMALLEST, **change})  # not json=, which cannot send half of a surrogate pair
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert pointers(answer) == [pointer]
    assert client.get("/v1/jobs").json()["data"] == []


def test_hub_names_are_taken_without_asking_the_hub(submit: Submit) -> None:
    assert submit(teacher="no-such-org/no-such-model", dataset="no-such-org/no-such-data")["status"] == "queued"


def test_a_full_queue_says_so_and_takes_nothing(client: TestClient, house: Services, submit: Submit) -> None:
    object.__setattr__(house, "settings", house.settings.model_copy(update={"max_queued_jobs": 2}))
    submit()
    submit()
    answer = client.post("/v1/jobs", json=SMALLEST)
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    assert len(client.get("/v1/jobs").json()["data"]) == 2


def test_validate_answers_with_the_resolved_config_and_stores_nothing(client: TestClient) -> None:
    answer = client.post("/v1/jobs:validate", json=SMALLEST)
    assert answer.status_code == 200
    assert answer.json()["valid"] is True
    assert answer.json()["config"]["training"]["epochs"] == 3
    assert answer.json()["teacher"]["layers"] == 6
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.post("/v1/jobs:validate", json={**SMALLEST, "student": 9}).status_code == 422


def test_validate_tells_of_a_temperature_that_nothing_reads(client: TestClient) -> None:
    """Guards against an option that is taken, and changes nothing: the answers of a regression are numbers."""
    rows = "text,label\n" + "".join(f"text {number},{number / 7}\n" for number in range(40))
    uploaded = client.post("/v1/datasets", files={"train": ("scores.csv", rows)}).json()

    def notes(method: Any) -> Any:
        job = {**SMALLEST, "dataset": f"dataset:{uploaded['id']}", "method": method}
        return client.post("/v1/jobs:validate", json=job).json()["notes"]

    (note,) = notes({"type": "kd", "temperature": 4})
    assert note.startswith("method.temperature (4) is not used: it softens probabilities")
    assert notes("kd") == []


def test_the_etag_changes_with_the_job_and_with_its_place(client: TestClient, house: Services, submit: Submit) -> None:
    """A watcher that is told 304 while its job moves up the queue would show a stale place for ever."""
    first, second = submit(), submit()
    url = f"/v1/jobs/{second['id']}"
    etag = client.get(url).headers["etag"]
    unchanged = client.get(url, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    become(house, first["id"], JobStatus.FAILED)
    deadline = time.monotonic() + 10  # places are worked out a few times a second, less often on a busy machine
    while (moved := client.get(url, headers={"If-None-Match": etag})).status_code == 304:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (moved.status_code, moved.json()["queue_position"]) == (200, 1)
    become(house, second["id"], JobStatus.FAILED)
    assert client.get(url, headers={"If-None-Match": moved.headers["etag"]}).json()["status"] == "failed"


def test_the_etag_changes_with_the_estimate(client: TestClient, house: Services, submit: Submit) -> None:
    """A watcher would show for ever when the job was once thought to begin."""
    connect(house)
    ended = [submit()["id"] for _ in range(3)]
    url = f"/v1/jobs/{submit()['id']}"
    began = datetime.now(UTC)
    for job in ended:
        become(house, job, JobStatus.SUCCEEDED)

    def etag_after(seconds: int, total: int) -> str:
        with house.database.session() as session:
            for job in ended:
                facts = {"fence": seconds, "number": 1, "worker": "w", "host": "h", "pid": 1, "started_at": began}
                session.add(Attempt(job_id=job, **facts, ended_at=began + timedelta(seconds=seconds)))
        deadline = time.monotonic() + 10  # the pace is worked out a few times a second
        while (answer := client.get(url)).json()["starts_in_seconds"] != {"least": 0, "most": total}:
            assert time.monotonic() < deadline, answer.json()["starts_in_seconds"]
            time.sleep(0.05)
        return answer.headers["etag"]

    assert etag_after(10, 10) != etag_after(20, 30)


def test_a_waiting_job_says_when_it_is_likely_to_start(client: TestClient, house: Services, submit: Submit) -> None:
    connect(house)
    waiting = submit()
    assert waiting["starts_in_seconds"] is None
    for _ in range(3):
        ended, begun = submit()["id"], datetime(2026, 11, 24, 2, tzinfo=UTC)
        become(house, ended, JobStatus.SUCCEEDED)
        with house.database.session() as session:
            facts = {"job_id": ended, "fence": 1, "number": 1, "worker": "w", "host": "h"}
            session.add(Attempt(**facts, started_at=begun, ended_at=begun + timedelta(seconds=90)))
    second = submit()
    assert second["starts_in_seconds"] == {"least": 90, "most": 180}


def test_a_job_asks_for_a_gpu_and_for_no_more_than_a_job_can_use(client: TestClient, submit: Submit) -> None:
    """Guards against a job that waits for GPUs that it would not use, or trains on fewer than it asked for."""
    assert submit(resources={"gpus": 1})["resources"] == {"gpus": 1}
    two = {"devices": 2, "batch_size": 32}
    assert submit(resources={"gpus": 2}, training=two)["resources"] == {"gpus": 2}
    assert submit(training=two)["config"]["training"]["devices"] == 2
    spread = two | {"hosts": 2}
    assert submit(resources={"gpus": 1}, training=spread)["config"]["training"]["hosts"] == 2
    for gpus, training, allowed in ((4, {}, 1), (1, two, 2), (2, spread, "2 on 2 hosts")):
        document = SMALLEST | {"resources": {"gpus": gpus}, "training": training}
        for path in ("/v1/jobs", "/v1/jobs:validate"):
            refused = client.post(path, json=document)
            assert refused.status_code == 422
            (problem,) = refused.json()["errors"]
            assert problem["pointer"] == "/resources/gpus"
            assert problem["detail"].startswith(f"found {gpus}; training.devices is {allowed}")
