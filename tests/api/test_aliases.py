"""Aliases: a name for whatever student answers under it, switched without a request that fails."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from api.deps import Services
from limbeck.client import Client
from limbeck.errors import InvalidInput, NotFound, Stale
from models.model import ModelKind
from tests.api.conftest import add_model
from tests.exported import LABELS


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def students(house: Services, exported_student: Path) -> list[str]:
    return [add_model(house, contents(exported_student), labels=list(LABELS)) for _ in range(2)]


def test_an_alias_serves_wherever_a_models_id_does(client: TestClient, students: list[str]) -> None:
    made = client.put("/v1/aliases/reviews", json={"model": students[0]})
    assert (made.status_code, made.headers["etag"]) == (200, f'"{made.json()["version"]}"')
    for name in ("reviews", students[0]):
        assert client.get(f"/v1/models/{name}").json()["id"] == students[0]
        assert client.get(f"/v1/models/{name}/files").status_code == 200
        assert client.get(f"/v1/models/{name}/files/config.json").status_code == 200
        assert client.post(f"/v1/models/{name}/predict", json={"inputs": "x"}).status_code == 200
    assert [one["name"] for one in client.get("/v1/aliases").json()["data"]] == ["reviews"]
    assert client.delete("/v1/aliases/reviews").status_code == 204
    assert client.get("/v1/aliases/reviews").status_code == 404
    assert client.post("/v1/models/reviews/predict", json={"inputs": "x"}).status_code == 404


def test_a_field_that_there_is_not_is_told_with_the_one_that_is_meant(client: TestClient, students: list[str]) -> None:
    answer = client.put("/v1/aliases/a", json={"modle": students[0]}).json()
    assert {"pointer": "/modle", "detail": "there is no such field; is 'model' meant?"} in answer["errors"]
    body = {"inputs": "x", "parameters": {"topk": 2}}
    answer = client.post(f"/v1/models/{students[0]}/predict", json=body).json()
    assert answer["errors"] == [{"pointer": "/parameters/topk", "detail": "there is no such field; is 'top_k' meant?"}]


def test_an_alias_may_be_named_by_another_and_means_its_model(
    client: TestClient, house: Services, students: list[str]
) -> None:
    """Guards against a 500: the name of an alias is no id that a row could refer to."""
    client.put("/v1/aliases/live", json={"model": students[0]})
    for name in ("fallback", "live"):
        answer = client.put(f"/v1/aliases/{name}", json={"model": "live"})
        assert (answer.status_code, answer.json().get("model")) == (200, students[0]), answer.text
    client.put("/v1/aliases/live", json={"model": students[1]})
    assert client.get("/v1/aliases/fallback").json()["model"] == students[0]
    assert len(house.students.loaded) == 2  # none twice, under the other's name


def test_a_switch_under_an_old_version_is_refused(client: TestClient, students: list[str]) -> None:
    """Guards two people who roll out at once: the second has to see what the first did."""
    first, second = students
    made = client.put("/v1/aliases/a", json={"model": first}, headers={"If-None-Match": "*"})
    seen, version = {"If-Match": made.headers["etag"]}, made.json()["version"]
    assert client.put("/v1/aliases/a", json={"model": second}, headers={"If-None-Match": "*"}).status_code == 412
    assert client.put("/v1/aliases/a", json={"model": second}, headers=seen).json()["version"] == version + 1
    stale = client.put("/v1/aliases/a", json={"model": first}, headers=seen)
    assert (stale.status_code, stale.json()["code"]) == (412, "stale")
    assert client.put("/v1/aliases/none", json={"model": first}, headers=seen).status_code == 412
    assert client.put("/v1/aliases/a", json={"model": first}, headers={"If-Match": "1"}).status_code == 422
    assert client.get("/v1/aliases/a").json()["model"] == second


def test_an_alias_that_was_made_again_is_another_one(client: TestClient, students: list[str]) -> None:
    """Guards a new alias against whoever has seen the one before it only."""
    first, second = students
    before = {"If-Match": client.put("/v1/aliases/a", json={"model": first}).headers["etag"]}
    assert client.delete("/v1/aliases/a").status_code == 204
    client.put("/v1/aliases/a", json={"model": second})
    assert client.put("/v1/aliases/a", json={"model": first}, headers=before).status_code == 412
    assert client.delete("/v1/aliases/a", headers=before).status_code == 412
    assert client.get("/v1/aliases/a").json()["model"] == second


@pytest.mark.parametrize("etag", ["*", '"0"', '"100000000000000000000"', f'"{"9" * 5000}"'])
def test_an_alias_that_is_not_there_has_no_version(client: TestClient, students: list[str], etag: str) -> None:
    """Guards against an alias made where a switch was meant, and a 500 for a number that no database holds."""
    answer = client.put("/v1/aliases/a", json={"model": students[0]}, headers={"If-Match": etag})
    assert (answer.status_code, answer.json()["code"]) == (412, "stale")
    client.put("/v1/aliases/a", json={"model": students[0]})
    switched = client.put("/v1/aliases/a", json={"model": students[1]}, headers={"If-Match": etag})
    assert switched.status_code == (200 if etag == "*" else 412)


def test_a_condition_that_nobody_reads_is_refused(client: TestClient, students: list[str]) -> None:
    """Guards against a write that goes through under a condition that does not hold."""
    etag = client.put("/v1/aliases/a", json={"model": students[0]}).headers["etag"]
    headers: dict[str, str]
    for headers in ({"If-None-Match": '"3"'}, {"If-None-Match": "*", "If-Match": etag}):
        assert client.put("/v1/aliases/a", json={"model": students[1]}, headers=headers).status_code == 422
    assert client.delete("/v1/aliases/a", headers={"If-Match": '"0"'}).status_code == 412
    assert client.get("/v1/aliases/a").json()["model"] == students[0]
    assert client.delete("/v1/aliases/a", headers={"If-Match": etag}).status_code == 204
    assert client.delete("/v1/aliases/a", headers={"If-Match": etag}).status_code == 404


def test_an_alias_means_a_student_that_can_answer(client: TestClient, house: Services, students: list[str]) -> None:
    teacher = add_model(house, {"config.json": b"{}"}, kind=ModelKind.TEACHER)
    assert client.put("/v1/aliases/a", json={"model": teacher}).status_code == 409
    assert client.put("/v1/aliases/a", json={"model": "mdl_none"}).status_code == 404
    assert client.get("/v1/aliases/a").status_code == 404
    for name in ("mdl_a", "with space", ".dot"):
        assert client.put(f"/v1/aliases/{name}", json={"model": students[0]}).status_code == 422, name


def test_a_model_under_an_alias_is_not_deleted(client: TestClient, students: list[str]) -> None:
    client.put("/v1/aliases/a", json={"model": students[0]})
    refused = client.delete(f"/v1/models/{students[0]}")
    assert refused.status_code == 409
    assert "alias a" in refused.json()["detail"]
    client.put("/v1/aliases/a", json={"model": students[1]})
    assert client.delete(f"/v1/models/{students[0]}").status_code == 204


def test_no_request_fails_while_an_alias_is_switched(client: TestClient, students: list[str]) -> None:
    """Guards the moment between two students: asked all the time, under one name, while it goes to and fro."""
    client.put("/v1/aliases/a", json={"model": students[0]})
    ended = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while not ended.is_set():
            statuses.append(client.post("/v1/models/a/predict", json={"inputs": "a text"}).status_code)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for turn in range(6):
            assert client.put("/v1/aliases/a", json={"model": students[(turn + 1) % 2]}).status_code == 200
    finally:
        ended.set()
        asker.join(30)
    assert len(statuses) > 5
    assert set(statuses) == {200}


def _through(client: TestClient, asked: httpx.Request) -> httpx.Response:
    path = asked.url.raw_path.decode()
    found = client.request(asked.method, path, content=asked.read(), headers=dict(asked.headers))
    return httpx.Response(found.status_code, headers=dict(found.headers), content=found.content)


def test_a_program_names_students_and_is_told_who_was_faster(client: TestClient, students: list[str]) -> None:
    """Guards against a client whose switch goes over somebody else's."""
    program = Client(transport=httpx.MockTransport(lambda asked: _through(client, asked)))
    assert program.aliases() == []
    made = program.set_alias("reviews", students[0], version=0)
    assert made.model == students[0]
    with pytest.raises(Stale):
        program.set_alias("reviews", students[1], version=0)
    assert program.set_alias("reviews", students[1], version=made.version).version == made.version + 1
    with pytest.raises(Stale):
        program.set_alias("reviews", students[0], version=made.version)
    with pytest.raises(Stale):
        program.delete_alias("reviews", version=made.version)
    assert [(one.name, one.model) for one in program.aliases()] == [("reviews", students[1])]
    assert program.predict("reviews", "x")[0]["label"] in LABELS
    program.delete_alias("reviews")
    with pytest.raises(NotFound, match="reviews"):
        program.alias("reviews")
    with pytest.raises(InvalidInput, match="a b"):
        program.set_alias("a b", students[0])
