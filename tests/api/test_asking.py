"""Asking a student past FastAPI's solving of parameters: what is answered, and how it is described, stays the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from api import asking
from api.deps import Services
from limbeck.runtime import Predictor
from tests.api.conftest import add_model
from tests.api.test_aliases import contents
from tests.exported import LABELS, texts

#: FastAPI takes it for JSON; the short way leaves it to FastAPI.
LONG_WAY = "application/vnd.limbeck+json"


@pytest.fixture
def student(house: Services, exported_student: Path) -> str:
    return add_model(house, contents(exported_student), labels=list(LABELS))


@pytest.fixture
def solved(client: TestClient) -> Iterator[list[str]]:
    """Paths of the requests whose parameters FastAPI solved."""
    app, seen = client.app, list[str]()
    assert isinstance(app, FastAPI)

    async def noted(request: Request) -> Predictor:
        seen.append(request.url.path)
        found: Predictor = request.state.student
        return found

    app.dependency_overrides[asking._student] = noted
    yield seen
    app.dependency_overrides.clear()


def told(answer: httpx.Response) -> tuple[int, Any, dict[str, str]]:
    """Everything but the request's id."""
    body = answer.json()
    if isinstance(body, dict):
        body.pop("request_id", None)
    return answer.status_code, body, {k: v for k, v in answer.headers.items() if k != "x-request-id"}


@pytest.mark.parametrize("route", ["predict", "inference"])
@pytest.mark.parametrize(
    "inputs", ["a text", {"text": "a text"}, ["a text", "Grüße, 世界"]], ids=["text", "object", "list"]
)
def test_a_plain_question_goes_the_short_way_to_the_same_answer(
    client: TestClient, student: str, solved: list[str], route: str, inputs: Any
) -> None:
    """Guards against a request that is answered otherwise by its content type, and against a short way that nobody
    goes any more, which no answer would show."""
    body = json.dumps({"inputs": inputs, "parameters": {"top_k": 2}})
    path = f"/v1/models/{student}/{route}"
    for short in ("application/json", "Application/JSON; charset=utf-8"):
        answer = client.post(path, content=body, headers={"Content-Type": short})
        assert (answer.status_code, solved) == (200, [])
    assert told(answer) == told(client.post(path, content=body, headers={"Content-Type": LONG_WAY}))
    assert solved == [path]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"inputs": "a"',
        b"\xff\xfe\x00",
        b'{"inputs": "\xff"}',
        b'{"inputs": "\\ud800"}',
        b"[" * 100_000,
        b'{"inputs": ' + b"9" * 5_000 + b"}",
        b'{"inputs": NaN}',
        b'{"inputs": "a", "parameters": null}',
        b'{"inputs": "a", "parameters": {"top_k": 0}}',
        b'{"inputs": "a", "parameters": {"top_k": "few"}}',
        b'{"inputs": "a", "parameters": {"speed": 0.5}}',
        b'{"inputs": "a", "input": 1}',
        b'{"inputs": "' + b"x" * 1_100_000 + b'"}',
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_what_is_wrong_with_a_body_is_told_as_by_fastapi(client: TestClient, student: str, body: bytes) -> None:
    """Guards against two ways to say what is wrong: of a client that sends the same, one would be a surprise."""
    path = f"/v1/models/{student}/predict"
    short, long = (
        client.post(path, content=body, headers={"Content-Type": kind}) for kind in ("application/json", LONG_WAY)
    )
    assert short.status_code in (400, 413, 422), short.text
    assert told(short) == told(long)


def test_what_may_be_of_two_kinds_and_is_none_is_one_problem(client: TestClient, student: str) -> None:
    answer = client.post(f"/v1/models/{student}/predict", json={"inputs": "a", "parameters": {"top_k": "few"}})
    assert answer.json()["errors"] == [
        {"pointer": "/parameters/top_k", "detail": "Input should be a whole number, or 'all'; found 'few'"}
    ]


def test_a_body_that_is_no_json_by_its_header_is_refused(client: TestClient, student: str) -> None:
    """Guards against reading whatever looks like JSON: a form of curl's would be taken today and not tomorrow."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post(
            f"/v1/models/{student}/predict", content=b'{"inputs": "a"}', headers={"Content-Type": kind}
        )
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), kind


def test_the_metrics_know_the_routes_of_the_short_way(client: TestClient, student: str) -> None:
    """Guards against labels of metrics that hold ids, or that every student shares with paths that do not exist."""
    asked = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": texts(1)}]}
    assert client.post(f"/v1/models/{student}/predict", json={"inputs": "a"}).status_code == 200
    assert client.post(f"/v2/models/{student}/infer", json=asked).status_code == 200
    counted = client.get("/metrics").text
    for route in ("/v1/models/{model_id}/predict", "/v2/models/{name}/infer"):
        assert f'limbeck_http_requests_total{{method="POST",route="{route}",status="200"}} 1.0' in counted


def test_the_routes_that_ask_are_compared_first(client: TestClient) -> None:
    """Guards against forty comparisons of paths before each question, which took half of the time in Python."""
    document = client.get("/openapi.json").json()
    assert list(document["paths"])[:3] == [
        "/v1/models/{model_id}/predict",
        "/v1/models/{model_id}/inference",
        "/v2/models/{name}/infer",
    ]


def test_a_student_that_cannot_be_loaded_is_no_fault_of_who_asks(
    client: TestClient, house: Services, exported_student: Path
) -> None:
    """Guards against "the input is not valid" to whoever asked something valid, while a card has no memory left."""
    broken = add_model(house, contents(exported_student) | {"onnx/model.onnx": b"no graph"}, labels=list(LABELS))
    answer = client.post(f"/v1/models/{broken}/predict", json={"inputs": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "cannot be loaded" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) > 0
