"""The Open Inference Protocol, asked by Triton's own client over a socket, and what it refuses."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from limbeck.runtime import Predictor
from tests.api.conftest import add_model
from tests.api.test_aliases import contents
from tests.api.test_process import serve
from tests.exported import LABELS, texts


@pytest.fixture(scope="module")
def address(
    tmp_path_factory: pytest.TempPathFactory, exported_student: Path, exported_exits_student: Path
) -> Iterator[str]:
    """A real server's, with a student under the alias ``reviews``, and one with early exits, ``early``."""
    with serve(tmp_path_factory.mktemp("served"), {}) as served:
        for alias, folder in (("reviews", exported_student), ("early", exported_exits_student)):
            made = add_model(served.house, contents(folder), labels=list(LABELS))
            httpx.put(f"{served.url}/v1/aliases/{alias}", json={"model": made}, timeout=30).raise_for_status()
        yield served.url


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_tritons_client_gets_what_the_predictor_answers(address: str, exported_student: Path, binary: bool) -> None:
    asked = [*texts(5), "Grüße, 世界"]
    expected = Predictor.load(exported_student, format="onnx").predict(asked)
    client = InferenceServerClient(address.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("reviews")
        described = client.get_model_metadata("reviews")
        assert described["versions"] == ["1"]
        assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        given = InferInput("text", [len(asked)], "BYTES")
        given.set_data_from_numpy(np.array([text.encode() for text in asked], dtype=np.object_), binary_data=binary)
        wanted = [InferRequestedOutput(name, binary_data=binary) for name in ("label", "score")]
        found = client.infer("reviews", [given], request_id="7", outputs=wanted)
    finally:
        client.close()
    assert found.get_response()["id"] == "7"
    labels = [one["label"] for one in expected]
    assert list(found.as_numpy("label")) == ([one.encode() for one in labels] if binary else labels)
    assert found.as_numpy("score").tolist() == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_tritons_client_may_name_the_version_that_there_is(address: str, exported_student: Path) -> None:
    """Guards against a 404 without a word for clients that name a version because the protocol has one."""
    asked = texts(3)
    expected = Predictor.load(exported_student, format="onnx").predict(asked)
    given = InferInput("text", [len(asked)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in asked], dtype=np.object_))
    client = InferenceServerClient(address.removeprefix("http://"))
    try:
        (version,) = client.get_model_metadata("reviews")["versions"]
        assert client.is_model_ready("reviews", version)
        assert client.get_model_metadata("reviews", version) == client.get_model_metadata("reviews")
        found = client.infer("reviews", [given], model_version=version)
        assert found.get_response()["model_version"] == version
        assert [one.decode() for one in found.as_numpy("label")] == [one["label"] for one in expected]
        assert not client.is_model_ready("reviews", "2")
        for ask in (lambda: client.get_model_metadata("reviews", "2"), lambda: client.infer("reviews", [given], "2")):
            with pytest.raises(InferenceServerException, match="'reviews' has no version '2'; it has '1'"):
                ask()
        with pytest.raises(InferenceServerException, match="There is no model 'nobody'"):
            client.infer("nobody", [given], "1")
    finally:
        client.close()


def infer(address: str, **changes: Any) -> httpx.Response:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": texts(2)}
    return httpx.post(f"{address}/v2/models/reviews/infer", json={"inputs": [tensor], **changes})


@pytest.mark.parametrize(
    ("changes", "binary"),
    [
        ({}, []),
        ({"parameters": {"binary_data_output": False}}, []),
        ({"parameters": {"binary_data_output": True}}, ["label", "score"]),
        ({"outputs": [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}]}, ["score"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "score", "parameters": {"binary_data": False}}, {"name": "label"}],
            },
            ["label"],
        ),
    ],
    ids=["default", "none", "all", "one", "all but one"],
)
def test_outputs_are_binary_where_they_are_asked_for_so(
    address: str, changes: dict[str, Any], binary: list[str]
) -> None:
    """Guards callers of Triton's client, which asks for it unless it is told not to: what their code decodes is bytes,
    and of JSON it would get texts."""
    plain = {one["name"]: one["data"] for one in infer(address).json()["outputs"]}
    answer = infer(address, **changes)
    size = answer.headers.get("Inference-Header-Content-Length")
    assert (size is not None) is bool(binary)
    assert answer.headers["content-type"] == ("application/octet-stream" if binary else "application/json")
    head = json.loads(answer.content[: int(size or len(answer.content))])
    assert [one["name"] for one in head["outputs"] if "data" not in one] == binary
    assert all(one["data"] == plain[one["name"]] for one in head["outputs"] if "data" in one)
    found = InferResult.from_response_body(answer.content, header_length=size)
    scores = found.as_numpy("score")
    assert (scores.dtype, scores.tolist()) == (np.float32, pytest.approx(plain["score"], abs=1e-6))
    assert [one.decode() if "label" in binary else one for one in found.as_numpy("label")] == plain["label"]


@pytest.mark.parametrize("speed", [0, 1])
def test_the_speed_of_a_request_is_read_beside_what_clients_send_of_themselves(
    address: str, exported_exits_student: Path, speed: float
) -> None:
    """Guards against a speed that is taken and has no effect, and against a client that says more than we read."""
    asked = texts(4)
    expected = Predictor.load(exported_exits_student, format="onnx").predict(asked, speed=speed)
    client = InferenceServerClient(address.removeprefix("http://"))
    given = InferInput("text", [len(asked)], "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in asked], dtype=np.object_))
    try:
        found = client.infer(
            "early", [given], sequence_id=7, sequence_end=True, priority=1, timeout=9, parameters={"speed": speed}
        )
    finally:
        client.close()
    assert found.as_numpy("score").tolist() == pytest.approx([one["score"] for one in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"outputs": {"name": "label"}}, "/outputs"),
        ({"outputs": "label"}, "/outputs"),
        ({"outputs": [{"name": ["label"]}]}, "/outputs/0/name"),
        ({"parameters": [1]}, "/parameters"),
        ({"parameters": {"speed": 1.5}}, "/parameters/speed"),
        ({"parameters": {"speed": "fast"}}, "/parameters/speed"),
        ({"parameters": {"top_k": 2}}, "/parameters/top_k"),
        ({"parameters": {"binary_data_output": "yes"}}, "/parameters/binary_data_output"),
        (
            {"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
            "/outputs/0/parameters/binary_data",
        ),
        ({"outputs": [{"name": "label", "parameters": [1]}]}, "/outputs/0/parameters"),
        (
            {"outputs": [{"name": "label", "parameters": {"classification": 3}}]},
            "/outputs/0/parameters/classification",
        ),
        (
            {"outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]},
            "/outputs/0/parameters/shared_memory_region",
        ),
    ],
)
def test_what_else_a_request_says_is_read_or_refused(address: str, changes: dict[str, Any], pointer: str) -> None:
    """Guards against an answer of 500, and against a wish that is passed over without a word."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    answer = httpx.post(f"{address}/v2/models/early/infer", json={"inputs": [tensor], **changes})
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    if "parameters" in changes:  # of a student without exits even a good one
        sent = {"inputs": [tensor], "parameters": {"speed": 0.5}}
        assert httpx.post(f"{address}/v2/models/reviews/infer", json=sent).status_code == 422


def test_tritons_client_reads_our_errors(address: str) -> None:
    client = InferenceServerClient(address.removeprefix("http://"))
    given = InferInput("words", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"a"], dtype=np.object_))
    try:
        with pytest.raises(InferenceServerException, match="this model has, each once: text"):
            client.infer("reviews", [given])
        with pytest.raises(InferenceServerException, match="There is no model"):
            client.get_model_metadata("nobody")
    finally:
        client.close()


def test_errors_are_of_the_type_by_which_kserves_client_knows_them(address: str) -> None:
    """Guards the text of an error there, which it takes from JSON of this name alone, and else from the status."""
    answer = httpx.post(f"{address}/v2/models/nobody/infer", json={"inputs": []})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert "nobody" in answer.json()["error"]
    elsewhere = httpx.get(f"{address}/v1/models/nobody")
    assert (elsewhere.headers["content-type"], "error" in elsewhere.json()) == ("application/problem+json", False)


def test_hugging_faces_client_reads_our_answers(address: str, exported_student: Path) -> None:
    """Guards the shapes of /inference, from outside: this client is written for the hub's own servers."""
    (text,) = texts(1)
    client = InferenceClient(model=f"{address}/v1/models/reviews/inference")
    found = client.text_classification(text, top_k=2)
    expected = Predictor.load(exported_student, format="onnx").predict(text, top_k=2)
    assert [one.label for one in found] == [one["label"] for one in expected]
    assert [one.score for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("tensor", "pointer"),
    [
        ({"name": "text", "datatype": "FP32", "shape": [1], "data": [1.0]}, "/inputs/0/datatype"),
        ({"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a"]}, "/inputs/0/shape"),
        ({"name": "text", "datatype": "BYTES", "shape": [-1, -1], "data": ["a"]}, "/inputs/0/shape"),
        ({"name": "text", "datatype": "BYTES", "shape": [1], "data": [1]}, "/inputs/0/data"),
        ({"name": "other", "datatype": "BYTES", "shape": [1], "data": ["a"]}, "/inputs/0/name"),
        (
            {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}},
            "/inputs/0/parameters/binary_data_size",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_tensor_is_refused_with_its_place(address: str, tensor: dict[str, Any], pointer: str) -> None:
    answer = httpx.post(f"{address}/v2/models/reviews/infer", json={"inputs": [tensor]})
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"id": "\\ud800", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}', "/id"),
        ('{"id": 7, "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}', "/id"),
        ("[" * 100_000, ""),
    ],
    ids=["half a character", "number", "deep"],
)
def test_a_body_that_json_allows_and_nobody_can_read_is_refused(address: str, body: str, pointer: str) -> None:
    """Guards against an answer of 500, for which a client would blame the server and ask again."""
    answer = httpx.post(f"{address}/v2/models/reviews/infer", content=body)
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("data", "length", "pointer"),
    [
        (struct.pack("<I", 10) + b"short", None, "/inputs/0/data"),
        (struct.pack("<I", 1) + b"a", -1, "/inputs"),
        (b"", "9" * 5000, "/Inference-Header-Content-Length"),
    ],
    ids=["ends within a text", "goes on behind the last", "a length that nobody can count"],
)
def test_binary_data_that_is_not_as_it_is_said_to_be_is_refused(
    address: str, data: bytes, length: int | str | None, pointer: str
) -> None:
    """Guards against reading behind the end, against half a text that is answered, and against an answer of 500."""
    size = len(data) if length != -1 else 5
    head = json.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}]}
    ).encode()
    more = b"more" if length == -1 else b""
    told = length if isinstance(length, str) else str(len(head))
    sent = {"Inference-Header-Content-Length": told, "Content-Type": "application/octet-stream"}
    answer = httpx.post(f"{address}/v2/models/reviews/infer", content=head + data + more, headers=sent)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_packed_body_is_refused_with_what_is_taken(address: str) -> None:
    """Guards against "not JSON", which says nothing to somebody whose client packs for him."""
    client = InferenceServerClient(address.removeprefix("http://"))
    given = InferInput("text", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"a"], dtype=np.object_))
    try:
        with pytest.raises(InferenceServerException, match="Content-Encoding: gzip"):
            client.infer("reviews", [given], request_compression_algorithm="gzip")
    finally:
        client.close()
    answer = httpx.post(f"{address}/v1/jobs", content=b"x", headers={"Content-Encoding": "br"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert httpx.post(f"{address}/v1/jobs", json={}, headers={"Content-Encoding": "identity"}).status_code == 422


def test_a_client_that_goes_away_is_not_counted_as_our_failure(address: str) -> None:
    """Guards an alarm on answers of 500 against users who close their laptops."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = b"POST /v2/models/reviews/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
        connection.sendall(head)
        time.sleep(0.3)
    counted = 'limbeck_http_requests_total{method="POST",route="/v2/models/{name}/infer",status="400"} 1.0'
    deadline = time.monotonic() + 10
    while counted not in (found := httpx.get(f"{address}/metrics").text):
        assert time.monotonic() < deadline, [line for line in found.splitlines() if "infer" in line]
        time.sleep(0.05)
