"""Errors as they leave the house: always a problem document, with a way to find the log line, and with no more."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from structlog.testing import LogCapture

from api.app import create_app
from api.errors import ANSWERS, answer_for
from limbeck import errors
from limbeck.errors import LimbeckError, Problem
from models.settings import Settings
from tests.api.conftest import SMALLEST

FIELDS = {"type", "title", "status", "detail", "instance", "code", "request_id", "errors"}


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body.keys() == FIELDS
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def tree(root: type[LimbeckError]) -> Iterator[type[LimbeckError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", sorted(tree(LimbeckError), key=lambda kind: kind.__name__))
def test_every_error_of_the_tree_has_a_status(kind: type[LimbeckError]) -> None:
    answer = answer_for(kind("message"))
    assert answer.status in {404, 409, 412, 413, 422, 429, 500, 503, 507}
    if issubclass(kind, errors.InvalidInput):
        assert answer.status == 422
    if kind.retryable and not issubclass(kind, errors.JobFailed | errors.Interrupted):
        assert answer.retry_after


def test_codes_are_not_shared_by_statuses() -> None:
    """A client that chooses by code would take one error for another."""
    statuses: dict[str, set[int]] = {}
    for kind in ANSWERS:
        statuses.setdefault(kind.code, set()).add(ANSWERS[kind].status)
    assert all(len(found) == 1 for found in statuses.values())


def test_every_code_stands_in_the_docs() -> None:
    """Guards the table that a client's programmer goes by: a code that is not in it is one that nobody handles."""
    never_leave = {errors.JobFailed, errors.Interrupted, errors.LeaseLost}
    codes = {kind.code for kind in tree(LimbeckError) if kind not in never_leave}
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    assert {code for code in codes if f"`{code}`" not in page} == set()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def on_both(request: pytest.FixtureRequest, settings: Settings) -> Iterator[TestClient]:
    """The application on SQLite, and on PostgreSQL where it is found."""
    if request.param == "postgres":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgres_url")})
    with TestClient(create_app(settings)) as client:
        yield client


def test_the_character_that_no_database_takes_is_refused_wherever_it_stands(on_both: TestClient) -> None:
    """PostgreSQL's driver raises an error of its own for U+0000, which was a 500."""
    for path in ("jobs/%00", "datasets/%00", "aliases/%00", "models/a%00/files/b", "jobs/x/events?after=0&%00"):
        answer = on_both.get(f"/v1/{path}")
        problem(answer, *((422, "invalid_input") if "?" in path else (404, "not_found")))
    for path in ("v1/models/%00/predict", "v2/models/%00/infer"):
        assert on_both.post(f"/{path}", json={"inputs": "x"}).status_code == 404
    cursor = base64.urlsafe_b64encode(b"0/\0").decode()
    for query, pointer in (
        ("metadata[k]=%00", "/metadata[k]"),
        ("method=a%00", "/method"),
        ("cursor=" + cursor, "/cursor"),
    ):
        assert problem(on_both.get(f"/v1/jobs?{query}"), 422, "invalid_input")["errors"][0]["pointer"] == pointer
    assert problem(on_both.put("/v1/aliases/a", json={"model": "\0"}), 422, "invalid_input")
    assert on_both.get("/v1/jobs?metadata[k]=a%2500").status_code == 200


def test_an_unknown_route_is_a_problem_too(client: TestClient) -> None:
    assert "/v1/nothing" in problem(client.get("/v1/nothing"), 404, "no_such_route")["detail"]
    problem(client.get("/v1/jobs/"), 404, "no_such_route")


def test_a_wrong_verb_is_a_problem_that_says_what_is_allowed(client: TestClient) -> None:
    answer = client.put("/v1/jobs", json={})
    problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) >= {"GET"}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"teacher": "a",\n "dataset" "b"}', "line 2, column 12"),
        ('{"teacher": }', "line 1, column 13"),
        ("{", "line 1, column 2"),
        ("not json", "line 1, column 1"),
    ],
)
def test_malformed_json_says_where(client: TestClient, text: str, place: str) -> None:
    answer = client.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert place in problem(answer, 400, "malformed_json")["detail"]


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5_000 + b"}"], ids=["utf8", "deep", "digits"]
)
def test_json_that_python_cannot_hold_is_the_callers_fault(client: TestClient, content: bytes) -> None:
    answer = client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_form_where_json_is_wanted_is_told_so(client: TestClient) -> None:
    """curl -d without a header sends a form; a bare 'not a dictionary' would help nobody."""
    answer = client.post("/v1/jobs", data=dict(SMALLEST))
    assert "application/json" in problem(answer, 415, "unsupported_media_type")["detail"]
    problem(
        client.post("/v1/jobs", content=json.dumps(SMALLEST), headers={"Content-Type": ""}),
        415,
        "unsupported_media_type",
    )


@pytest.mark.parametrize("body", ["null", "[]", '"text"', "3"])
def test_json_that_is_no_object_is_refused_whole(client: TestClient, body: str) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == [""]


def test_a_missing_body_is_told_so(client: TestClient) -> None:
    assert problem(client.post("/v1/jobs"), 422, "invalid_input")["errors"] == [
        {"pointer": "", "detail": "this request needs a body"}
    ]


def test_a_json_body_has_a_limit(client: TestClient) -> None:
    body = json.dumps({**SMALLEST, "name": "x" * 1_100_000})
    problem(client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}), 413, "too_large")

    def unannounced() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    answer = client.post("/v1/jobs", content=unannounced(), headers={"Content-Type": "application/json"})
    problem(answer, 413, "too_large")


def test_parameters_outside_the_body_say_where_they_are(client: TestClient) -> None:
    found = problem(client.get("/v1/jobs?limit=many"), 422, "invalid_input")["errors"]
    assert [(one["pointer"], one["in"]) for one in found] == [("/limit", "query")]
    long = client.post("/v1/jobs", json=SMALLEST, headers={"Idempotency-Key": "k" * 300})
    assert [one["in"] for one in problem(long, 422, "invalid_input")["errors"]] == ["header"]


def test_a_request_id_is_taken_over_where_it_is_harmless(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for evil in ("a b", "x" * 129, "{}"):
        answer = client.get("/healthz", headers={"X-Request-Id": evil})
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.fixture
def failing(settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("secret: s3cr3t")

    @app.get("/internal")
    def internal() -> None:
        raise errors.LeaseLost("secret: s3cr3t")

    @app.get("/away")
    def away() -> None:
        raise errors.Unavailable("The database does not answer.", [Problem("/x", "y")])

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/boom", "/internal"])
def test_an_unexpected_error_leaks_nothing_and_is_logged_with_the_request_id(failing: TestClient, path: str) -> None:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    try:
        answer = failing.get(path, headers={"X-Request-Id": "find-me"})
    finally:
        structlog.reset_defaults()
    body = problem(answer, 500, "internal_error")
    assert "s3cr3t" not in answer.text
    assert body["request_id"] == "find-me"
    logged = [entry for entry in capture.entries if entry["log_level"] == "error"]
    assert [entry["request_id"] for entry in logged] == ["find-me"]
    assert logged[0]["exc_info"]


def test_a_path_writes_no_line_of_its_own_into_the_log(client: TestClient) -> None:
    """Guards those who read the log against requests that nobody made, and a terminal against escape sequences."""
    capture = LogCapture()
    structlog.configure(processors=[capture])
    try:
        client.get("/v1/jobs/x%0A2026-01-01 forged%1B%C2%85ü")
    finally:
        structlog.reset_defaults()
    (line,) = [entry["event"] for entry in capture.entries if "forged" in entry["event"]]
    assert line.isprintable()
    assert line.startswith("GET /v1/jobs/x%0A2026")


def test_a_service_that_is_away_says_when_to_come_back(failing: TestClient) -> None:
    answer = failing.get("/away")
    assert problem(answer, 503, "unavailable")["errors"] == [{"pointer": "/x", "detail": "y"}]
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "pointer"),
    [
        ("DELETE", "/v1/jobs/job_1?keep_model=true", "/keep_model"),
        ("POST", "/v1/jobs?dry_run=true", "/dry_run"),
        ("GET", "/v1/jobs/job_1/events?since=3", "/since"),
        ("GET", "/v1/jobs/job_1/logs?tail=100", "/tail"),
        ("GET", "/v1/datasets/ds_1/preview?row=5", "/row"),
        ("GET", "/v1/models/mdl_1/download?fmt=onnx", "/fmt"),
        ("GET", "/v1/aliases?model=mdl_1", "/model"),
    ],
)
def test_a_parameter_that_nobody_reads_is_refused(client: TestClient, method: str, path: str, pointer: str) -> None:
    """Guards against models that are gone, as the word that was to keep them was misspelt; and against a log or an
    archive that is not the one that was asked for."""
    answer = client.request(method, path, json=SMALLEST if method == "POST" else None)
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
