"""The Open Inference Protocol, asked by Triton's own client over a socket, and what it refuses."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from tritonclient.http import InferenceServerClient, InferInput
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
        assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        given = InferInput("text", [len(asked)], "BYTES")
        given.set_data_from_numpy(np.array([text.encode() for text in asked], dtype=np.object_), binary_data=binary)
        found = client.infer("reviews", [given], request_id="7")
    finally:
        client.close()
    assert found.get_response()["id"] == "7"
    assert list(found.as_numpy("label")) == [one["label"] for one in expected]
    assert found.as_numpy("score").tolist() == pytest.approx([one["score"] for one in expected], abs=1e-5)


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


def test_binary_data_that_ends_within_a_text_is_refused(address: str) -> None:
    """Guards against reading behind the end, and against half a text that is answered."""
    data = struct.pack("<I", 10) + b"short"
    head = json.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}]}
    ).encode()
    sent = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer = httpx.post(f"{address}/v2/models/reviews/infer", content=head + data, headers=sent)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/inputs/0/data")
