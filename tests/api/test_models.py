"""Models over HTTP: teachers that come in, students that go out and answer."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.deps import Services
from limbeck.runtime import Predictor
from models.job import JobStatus
from models.model import ModelKind
from tests.api.conftest import add_model, become
from tests.exported import LABELS
from tests.exported import texts as docstrings
from tests.tiny import write_tiny_bert


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("teacher") / "tiny", layers=4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tarred(files: dict[str, bytes], top: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(top + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def zipped(files: dict[str, bytes], top: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return out.getvalue()


def upload(client: TestClient, content: bytes, name: str = "tiny.tar.gz", **fields: str) -> Any:
    return client.post("/v1/models", files={"file": (name, content)}, data=fields)


def nothing_stored(client: TestClient, house: Services) -> bool:
    left = [path for path in house.scratch.rglob("*") if path.is_file()] if house.scratch.exists() else []
    return client.get("/v1/models").json()["data"] == [] and not list(house.storage.list()) and not left


@pytest.mark.parametrize(("pack", "top"), [(tarred, ""), (tarred, "./"), (tarred, "tiny/"), (zipped, "tiny/")])
def test_an_uploaded_teacher_is_stored_file_by_file(
    client: TestClient, teacher_folder: Path, pack: Callable[..., bytes], top: str
) -> None:
    files = contents(teacher_folder)
    answer = upload(client, pack(files, top), name="tiny.bin")
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert answer.headers["location"] == f"/v1/models/{model['id']}"
    assert (model["kind"], model["name"], model["layers"]) == ("teacher", "tiny", 4)
    assert model["formats"] == ["safetensors"]
    assert {file["path"] for file in model["files"]} == set(files)
    assert client.get(f"/v1/models/{model['id']}").json() == model
    for path, content in files.items():
        assert client.get(f"/v1/models/{model['id']}/files/{path}").content == content


def test_a_job_may_name_the_teacher_and_is_checked_against_it(
    client: TestClient, teacher_folder: Path, submit: Callable[..., dict[str, Any]]
) -> None:
    model = upload(client, tarred(contents(teacher_folder)), name="t.tgz").json()["id"]
    body = {"teacher": f"model:{model}", "dataset": "builtin:stdlib-docstrings", "student": 5}
    body["training"] = {"max_length": 8}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/student/layers"]
    assert "4" in answer.json()["errors"][0]["detail"]
    job = submit(teacher=f"model:{model}", student=2, training={"max_length": 8})
    deletion = client.delete(f"/v1/models/{model}")
    assert deletion.status_code == 409
    assert job["id"] in deletion.json()["detail"]


def test_a_job_may_name_its_students_own_model_and_is_checked_against_it(
    client: TestClient, teacher_folder: Path, submit: Callable[..., dict[str, Any]]
) -> None:
    """A student with a source has that model's layers, and is refused for what that model is."""
    model = upload(client, tarred(contents(teacher_folder)), name="t.tgz").json()["id"]
    body: dict[str, Any] = {"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings"}
    for student, pointer in (
        ({"source": f"model:{model}", "layers": 5}, "/student/layers"),
        ({"source": "path:/somewhere"}, "/student/source"),
        ({"source": "model:mdl_none"}, "/student/source"),
        ({"hidden_size": 100, "heads": 7}, "/student/heads"),
    ):
        answer = client.post("/v1/jobs", json={**body, "student": student, "training": {"max_length": 8}})
        assert answer.status_code == 422
        assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    job = submit(
        teacher="builtin:minilm-l6", student={"source": f"model:{model}", "layers": 2}, training={"max_length": 8}
    )
    assert job["id"] in client.delete(f"/v1/models/{model}").json()["detail"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pytorch_model.bin": b"x"}, "invalid_archive"),
        ({"../evil": b"x"}, "invalid_archive"),
        ({"big.txt": bytes(6_000_000)}, "invalid_archive"),
        ({"config.json": None}, "invalid_model"),
        ({"config.json": b"{"}, "invalid_model"),
        ({"config.json": b"[]"}, "invalid_model"),
        ({"model.safetensors": None}, "invalid_model"),
        ({"model.safetensors": struct.pack("<Q", 1 << 60)}, "invalid_model"),
        ({"tokenizer.json": None, "vocab.txt": None}, "invalid_model"),
        ({"naïve file?.txt": b"x"}, "invalid_input"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_teacher_gets_422_and_leaves_nothing(
    client: TestClient, house: Services, teacher_folder: Path, change: dict[str, bytes | None], code: str
) -> None:
    files = {name: content for name, content in (contents(teacher_folder) | change).items() if content is not None}
    answer = upload(client, tarred(files))
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert nothing_stored(client, house)


@pytest.mark.parametrize(
    "odd",
    [
        {"architectures": ["BertForSequenceClassification"], "id2label": {"first": "x"}},
        {"architectures": ["Bert\ud800"]},
        {"architectures": ["Bert\0"]},
    ],
    ids=("labels", "half a character", "NUL"),
)
def test_an_odd_config_is_refused_and_no_server_error(
    client: TestClient, teacher_folder: Path, odd: dict[str, Any]
) -> None:
    """Half a character no database takes, and NUL and a name that is longer than its column not PostgreSQL."""
    files = contents(teacher_folder)
    config = json.loads(files["config.json"]) | odd
    answer = upload(client, tarred(files | {"config.json": json.dumps(config).encode()}))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_model"), answer.text


def test_lists_keep_to_their_filters(
    client: TestClient, house: Services, submit: Callable[..., dict[str, Any]]
) -> None:
    job = submit()["id"]
    student = add_model(house, {"config.json": b"{}"}, job_id=job)
    teacher = add_model(house, {"config.json": b"{}"}, kind=ModelKind.TEACHER)

    def ids(query: str) -> list[str]:
        return [model["id"] for model in client.get(f"/v1/models?{query}").json()["data"]]

    assert ids("") == [teacher, student]
    assert ids("kind=student") == [student]
    assert ids(f"job_id={job}") == [student]
    assert client.get("/v1/models?kinds=student").status_code == 422


def test_a_student_carries_its_lineage_and_the_scorecard_of_its_job(
    client: TestClient, house: Services, submit: Callable[..., dict[str, Any]]
) -> None:
    job = submit()["id"]
    become(house, job, JobStatus.SUCCEEDED, scorecard={"version": 1})
    model = add_model(house, {"config.json": b"{}"}, job_id=job, teacher="builtin:minilm-l6", method="kd", labels=["a"])
    found = client.get(f"/v1/models/{model}").json()
    assert (found["job_id"], found["teacher"], found["method"], found["labels"]) == (
        job,
        "builtin:minilm-l6",
        "kd",
        ["a"],
    )
    assert found["scorecard"] == {"version": 1}


def test_what_is_not_there_is_404(client: TestClient, house: Services) -> None:
    model = add_model(house, {"config.json": b"{}"})
    for path in ("mdl_none", "mdl_none/files", "mdl_none/download", f"{model}/files/none.txt", f"{model}/files/../x"):
        assert client.get(f"/v1/models/{path}").status_code == 404, path
    assert client.post("/v1/models/mdl_none/predict", json={"inputs": "x"}).status_code == 404


@pytest.fixture
def student(house: Services, exported_student: Path) -> str:
    return add_model(house, contents(exported_student), labels=list(LABELS))


def test_predictions_have_the_shapes_of_the_pipeline(client: TestClient, student: str) -> None:
    one, two = docstrings(2)

    def ask(inputs: Any, **parameters: Any) -> Any:
        answer = client.post(f"/v1/models/{student}/predict", json={"inputs": inputs, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        return answer.json()

    (best,) = ask(one)
    assert best["label"] in LABELS
    assert 0 < best["score"] <= 1
    assert ask({"text": one}) == best
    assert ask([one, two])[0] == best
    ranked = ask([one], top_k=2)[0]
    assert [len(ask([one], top_k="all")[0]), len(ranked)] == [3, 2]
    assert ranked[0] == best


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/inputs"),
        ({"inputs": []}, "/inputs"),
        ({"inputs": 3}, "/inputs"),
        ({"inputs": ["a", None]}, "/inputs/1"),
        ({"inputs": {"text": "a", "text_pair": "b"}}, "/inputs/text_pair"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "/parameters/top_k"),
        ({"inputs": "a", "parameters": {"speed": 1}}, "/parameters/speed"),
        ({"inputs": "a", "input": 1}, "/input"),
    ],
    ids=str,
)
def test_a_wrong_question_is_refused_with_its_place(
    client: TestClient, student: str, body: dict[str, Any], pointer: str
) -> None:
    answer = client.post(f"/v1/models/{student}/predict", json=body)
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]


def test_speed_is_chosen_per_request(client: TestClient, house: Services, exported_exits_student: Path) -> None:
    """Guards a speed that is read and dropped on its way, and graphs that are not fetched: what is answered over HTTP
    is what the library answers, at the student's own speed where the request names none."""
    files = contents(exported_exits_student)
    model = add_model(house, files, labels=list(LABELS))
    local = Predictor.load(exported_exits_student, threads=1)
    asked = docstrings(2)
    seen = []
    for parameters in ({}, {"speed": 0}, {"speed": 1}):
        answer = client.post(f"/v1/models/{model}/predict", json={"inputs": asked, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        expected = local.predict(asked, **parameters)
        assert [one["score"] for one in answer.json()] == pytest.approx([one["score"] for one in expected], abs=1e-5)
        seen.append(answer.json()[0]["score"])
    assert seen[1] != pytest.approx(seen[2], abs=1e-4)
    for wrong in (1.5, -1, "fast", True):
        answer = client.post(f"/v1/models/{model}/predict", json={"inputs": "x", "parameters": {"speed": wrong}})
        assert [one["pointer"] for one in answer.json()["errors"]] == ["/parameters/speed"], answer.text
    graphs = [path for path in files if path.startswith("onnx/exits/")]
    packed = client.get(f"/v1/models/{model}/download?format=onnx").content
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert len(graphs) == 3
        assert all(any(name.endswith(graph) for name in archive.getnames()) for graph in graphs)


def test_a_model_without_an_export_says_how_to_get_one(client: TestClient, teacher_folder: Path) -> None:
    model = upload(client, tarred(contents(teacher_folder))).json()["id"]
    answer = client.post(f"/v1/models/{model}/predict", json={"inputs": "x"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "onnx" in answer.json()["detail"]


def test_a_deleted_student_answers_no_more(client: TestClient, house: Services, student: str) -> None:
    assert client.post(f"/v1/models/{student}/predict", json={"inputs": "x"}).status_code == 200
    assert client.delete(f"/v1/models/{student}").status_code == 204
    assert client.post(f"/v1/models/{student}/predict", json={"inputs": "x"}).status_code == 404
    assert house.students.loaded == ()
    assert not list(house.storage.list("models"))
