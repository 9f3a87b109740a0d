"""The API's description: complete, true to what the routes answer, and readable without internet."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from api import examples, job_schemas, schemas
from limbeck.config import TASKS, DistillConfig

#: Where an answer has no body, or one that is no JSON.
_BODILESS = {"204", "206", "304", "307"}


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{verb} {path}", one) for path, verbs in document["paths"].items() for verb, one in verbs.items()]


def test_every_route_of_the_contract_is_there(document: dict[str, Any]) -> None:
    assert {name for name, _ in operations(document)} >= {
        "post /v1/jobs", "post /v1/jobs:validate", "get /v1/jobs", "get /v1/jobs/{job_id}", "delete /v1/jobs/{job_id}",
        "post /v1/jobs/{job_id}/cancel", "post /v1/jobs/{job_id}/pause", "post /v1/jobs/{job_id}/resume",
        "post /v1/jobs/{job_id}/rerun", "get /v1/jobs/{job_id}/events", "get /v1/jobs/{job_id}/metrics",
        "get /v1/jobs/{job_id}/logs", "get /v1/jobs/{job_id}/attempts", "get /v1/jobs/{job_id}/scorecard",
        "post /v1/datasets", "get /v1/datasets", "get /v1/datasets/{dataset_id}",
        "get /v1/datasets/{dataset_id}/preview", "delete /v1/datasets/{dataset_id}",
        "post /v1/models", "get /v1/models", "get /v1/models/{model_id}", "delete /v1/models/{model_id}",
        "get /v1/models/{model_id}/files", "get /v1/models/{model_id}/files/{path}",
        "get /v1/models/{model_id}/download", "post /v1/models/{model_id}/predict",
        "get /v1/aliases", "get /v1/aliases/{name}", "put /v1/aliases/{name}", "delete /v1/aliases/{name}",
        "get /v2/health/live", "get /v2/health/ready", "get /v2/models/{name}", "post /v2/models/{name}/infer",
        "get /v1/methods", "get /v1/tasks", "get /healthz", "get /readyz", "get /metrics",
    }  # fmt: skip


def test_every_operation_has_a_name_a_summary_a_tag_and_examples_of_all_its_bodies(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for name, operation in operations(document):
        assert operation.get("summary"), name
        assert operation.get("tags"), name
        for content in operation.get("requestBody", {}).get("content", {}).values():
            parts = content["schema"].get("properties", {}).values()
            assert content.get("examples") or all(part.get("description") for part in parts), name
        for status, answer in operation["responses"].items():
            assert status in _BODILESS or answer.get("content"), f"{name} {status}"
            for media, content in answer.get("content", {}).items():
                binary = content.get("schema", {}).get("format") == "binary"
                assert binary or "example" in content, f"{name} {status} {media}"


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    """An example that went stale is copied by the first user who reads it."""
    checked = 0
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            content = answer.get("content", {}).get("application/json") or answer.get("content", {}).get(
                "application/problem+json"
            )
            if content and "example" in content and content.get("schema"):
                schema = content["schema"] | {"components": document["components"]}
                jsonschema.validate(content["example"], schema)
                checked += 1
            assert status != "200" or content is None or content["example"] is not None, name
    assert checked > 60


def test_the_examples_of_bodies_are_taken_by_the_routes(client: TestClient) -> None:
    for name, example in examples.JOB_REQUESTS.items():
        DistillConfig.model_fields  # noqa: B018 - the models are complete
        assert job_schemas.JobRequest.model_validate(example["value"]), name
    for example in examples.PREDICT_REQUESTS.values():
        schemas.PredictRequest.model_validate(example["value"])


def test_the_body_of_a_submit_is_described_field_by_field(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/JobRequest")
    fields = document["components"]["schemas"]["JobRequest"]["properties"]
    assert {"teacher", "dataset", "method", "training", "name", "metadata", "priority"} <= set(fields)
    assert "webhook_url" not in fields


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(re.findall(r"'#/components/schemas/([^']+)'", str(document)))
    assert found <= set(document["components"]["schemas"])


def test_the_page_needs_no_internet(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "http" not in re.sub(r"https?://json-schema", "", page.replace("http-equiv", ""))
    for link in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert link.startswith("/"), link
        assert client.get(link).status_code == 200, link


def test_methods_and_tasks_come_with_their_schemas(client: TestClient) -> None:
    methods = {one["type"]: one for one in client.get("/v1/methods").json()["data"]}
    assert {"kd", "none"} <= set(methods)
    assert "temperature" in methods["kd"]["json_schema"]["properties"]
    assert [one["type"] for one in client.get("/v1/tasks").json()["data"]] == list(TASKS)
