"""Every task over HTTP: its data go up and are shown, a job for another task is refused, and its students answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tritonclient.http import InferResult

from api.deps import Services
from limbeck.config import TASKS
from models.base import new_id
from models.model import ModelKind
from models.repository import catalogue
from models.repository.catalogue import StoredFile
from tests.api.conftest import SMALLEST
from tests.limbeck.task_data import EXAMPLES, examples
from tests.tiny import write_tiny_bert


def upload(client: TestClient, kind: str, **fields: str) -> Any:
    content = "".join(json.dumps(row) + "\n" for row in examples(kind, 60)).encode()
    return client.post("/v1/datasets", files={"train": ("train.jsonl", content)}, data=fields)


@pytest.mark.parametrize("task", EXAMPLES)
def test_the_data_of_every_task_go_up_and_are_shown(client: TestClient, task: str) -> None:
    """Guards the profile and the preview, which a person reads before a job is paid for."""
    answer = upload(client, task)
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert dataset["profile"]["task"] == task
    rows = client.get(f"/v1/datasets/{dataset['id']}/preview?rows=2").json()["rows"]
    label = {"token_classification": "tags", "question_answering": "answers"}.get(task, "label")
    assert isinstance(rows[0][label], {"regression": float, "question_answering": dict}.get(task, list))
    config = {**SMALLEST, "dataset": f"dataset:{dataset['id']}"}
    assert client.post("/v1/jobs:validate", json=config | {"task": task}).status_code == 200
    other = next(one for one in TASKS if one not in (task, "sequence_classification"))
    refused = client.post("/v1/jobs:validate", json=config | {"task": other})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/task"
    assert f"the data set is of {task}" in refused.json()["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"dataset": "builtin:digits"}, "/teacher"),
        ({"teacher": "builtin:vit-digits"}, "/teacher"),
        ({"teacher": "builtin:vit-digits", "dataset": "builtin:digits", "export": ["onnx-fp16"]}, "/export"),
    ],
    ids=["images for a reader of text", "text for a reader of images", "a form that images have not"],
)
def test_what_a_built_in_data_set_is_of_is_known_at_submit(
    client: TestClient, changes: dict[str, Any], pointer: str
) -> None:
    """Guards against a job that is called valid, waits, and fails at its start."""
    for route in ("/v1/jobs:validate", "/v1/jobs"):
        refused = client.post(route, json={**SMALLEST, **changes})
        assert refused.status_code == 422, refused.text
        assert refused.json()["errors"][0]["pointer"].startswith(pointer)


def test_what_the_data_are_for_can_be_said(client: TestClient) -> None:
    assert upload(client, "regression", task="magic").json()["errors"][0]["pointer"] == "/task"
    refused = upload(client, "multi_label", task="regression").json()
    assert "expected a number" in refused["errors"][0]["detail"]
    tags = upload(client, "token_classification", tokens="tokens", tags="no such").json()
    assert tags["errors"][0]["pointer"] == "/tags"


def student(client: TestClient, house: Services, folder: Path, task_type: str, labels: list[str]) -> str:
    """A random student of the task, exported and stored; its id."""
    from transformers import AutoConfig

    from limbeck.graph import write_graph

    task = TASKS[task_type]()
    write_tiny_bert(folder, layers=2)
    config = AutoConfig.from_pretrained(folder)
    task.configure(config, labels)
    (folder / "onnx").mkdir()
    write_graph(task.model_class().from_config(config).train(False), task, folder / "onnx" / "model.onnx")
    described = {"version": 1, "task": task_type, "labels": labels, "max_length": 32, "pair": False}
    described |= task.described(config) | ({"mask": "[MASK]"} if task.of_words else {})
    (folder / "limbeck.json").write_text(json.dumps(described))
    model_id, files = new_id("mdl"), []
    for path in ("limbeck.json", "config.json", "tokenizer.json", "onnx/model.onnx"):
        stored = house.storage.put_file(folder / path, f"models/{model_id}/{path}")
        files.append(StoredFile(path, stored.key, stored.bytes, stored.sha256))
    with house.database.session() as session:
        catalogue.add_model(session, kind=ModelKind.STUDENT, name="x", files=files, model_id=model_id)
    return model_id


def test_students_of_every_task_answer(client: TestClient, house: Services, tmp_path: Path) -> None:
    """Guards the shapes of the answers, and that bad questions are named, on the way over HTTP."""

    def ask(task: str, labels: list[str], inputs: Any, **parameters: Any) -> Any:
        model = student(client, house, tmp_path / f"{task}{len(list(tmp_path.iterdir()))}", task, labels)
        return client.post(f"/v1/models/{model}/predict", json={"inputs": inputs, "parameters": parameters}).json()

    text = "Return the window that has the focus."
    several = ask("multi_label", ["a", "b", "c"], text, top_k="all")
    assert [set(one) for one in several] == [{"label", "score"}] * 3
    assert sum(one["score"] for one in several) != pytest.approx(1)
    assert [one["label"] for one in ask("regression", [], [text, text])] == ["LABEL_0", "LABEL_0"]
    entities = ask("token_classification", ["O", "B-x", "B-y"], text)
    assert all(set(one) == {"entity_group", "score", "word", "start", "end"} for one in entities)
    entities = ask("token_classification", ["O", "B-x", "B-y"], {"tokens": text.split()})
    assert all(set(one) == {"entity_group", "score", "word", "start", "end"} for one in entities)
    wrong = [
        text,
        {"tokens": []},
        {"tokens": ["a", ""]},
        {"tokens": "a"},
        {"tokens": ["a", 3], "text": "a"},
        3,
        {"x": 1},
    ]
    problems = ask("token_classification", ["O", "B-x"], wrong)["errors"]
    assert {one["pointer"]: one["detail"] for one in problems} == {
        "/inputs/1/tokens": "the list is empty; give at least one token",
        "/inputs/2/tokens/1": "the token is empty",
        "/inputs/3/tokens": "found a text; allowed: a list of texts",
        "/inputs/4/text": "there is no such field beside tokens; allowed: tokens alone, or text",
        "/inputs/4/tokens/1": "found a number; allowed: a text",
        "/inputs/5": "found a number; allowed: a text, or an object with the field text or tokens",
        "/inputs/6/x": "there is no such field; allowed: text, or tokens",
        "/inputs/6/text": "this field is required",
    }
    asked = {"question": "What is returned?", "context": text}
    found = ask("question_answering", [], [asked, asked | {"context": " ".join([text] * 30)}])
    assert found[0]["answer"] == text[found[0]["start"] : found[0]["end"]]
    assert found[1]["score"] <= 1
    bad = ask("question_answering", [], [asked, {"question": "", "text": "x"}])
    assert {one["pointer"] for one in bad["errors"]} == {
        "/inputs/1/question",
        "/inputs/1/context",
        "/inputs/1/text",
    }
    assert ask("question_answering", [], "text")["errors"][0]["pointer"] == "/inputs"
    nothing = [asked | {"context": unread} for unread in ("\u200b", "\x01", "\ufeff", "\u00ad", "\u0301")]
    refused = ask("question_answering", [], [asked, *nothing])  # and no internal error
    assert [one["pointer"] for one in refused["errors"]] == [f"/inputs/{place}/context" for place in range(1, 6)]
    assert ask("question_answering", [], nothing[0])["errors"][0]["pointer"] == "/inputs/context"


def test_all_labels_of_a_text_come_over_the_open_protocol(client: TestClient, house: Services, tmp_path: Path) -> None:
    """Guards students of several labels, of which the one with the highest score says little."""
    model = student(client, house, tmp_path / "several", "multi_label", ["a", "b", "c"])
    texts = ["Return the window that has the focus.", "返回拥有焦点的窗口。"]
    expected = client.post(f"/v1/models/{model}/predict", json={"inputs": texts, "parameters": {"top_k": "all"}}).json()
    described = client.get(f"/v2/models/{model}").json()["outputs"]
    assert [one["name"] for one in described] == ["label", "score", "answer"]
    asked: dict[str, Any] = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": texts}]}
    found = client.post(f"/v2/models/{model}/infer", json=asked).json()["outputs"]
    label, score, answer = (one["data"] for one in found)
    assert [json.loads(one) for one in answer] == expected
    assert (label, score) == tuple([each[0][name] for each in expected] for name in ("label", "score"))
    asked |= {"outputs": [{"name": "answer"}]}
    (alone,) = client.post(f"/v2/models/{model}/infer", json=asked).json()["outputs"]
    assert alone == {"name": "answer", "datatype": "BYTES", "shape": [2], "data": answer}


def test_students_that_give_vectors_answer(client: TestClient, house: Services, tmp_path: Path) -> None:
    """Guards the shape of feature extraction: numbers for a text, a list of these for a list, by every road."""
    model = student(client, house, tmp_path / "vectors", "embeddings", [])
    text, other = "Return the window that has the focus.", "返回拥有焦点的窗口。"
    ask = f"/v1/models/{model}/predict"
    alone = client.post(ask, json={"inputs": text}).json()
    both = client.post(ask, json={"inputs": [text, other]}).json()
    assert len(alone) == 32
    assert sum(number**2 for number in alone) == pytest.approx(1, abs=1e-5)
    assert both[0] == pytest.approx(alone, abs=1e-5)
    assert len(both) == 2
    refused = client.post(ask, json={"inputs": text, "parameters": {"top_k": 2}}).json()
    assert refused["errors"][0]["pointer"] == "/parameters/top_k"
    assert client.post(f"/v1/models/{model}/inference", json={"inputs": [text, other]}).json() == both
    (described,) = client.get(f"/v2/models/{model}").json()["outputs"]
    assert described == {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": [text, other]}
    (output,) = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert output["shape"] == [2, 32]
    assert output["data"] == pytest.approx([number for vector in both for number in vector])
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    packed = client.post(f"/v2/models/{model}/infer", json=asked)
    size = packed.headers["Inference-Header-Content-Length"]
    vectors = InferResult.from_response_body(packed.content, header_length=size).as_numpy("embedding")
    assert (vectors.shape, vectors.tolist()) == ((2, 32), [pytest.approx(vector, abs=1e-6) for vector in both])


def test_texts_go_up_for_embeddings_and_methods_without_sense_are_refused(client: TestClient) -> None:
    """Guards texts without a column of labels, and a job that would train on nothing."""
    content = "".join(json.dumps({"text": row["text"]}) + "\n" for row in examples("multi_label", 60)).encode()
    answer = client.post(
        "/v1/datasets", files={"train": ("train.jsonl", content)}, data={"task": "embeddings", "text": "text"}
    )
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert dataset["profile"]["task"] == "embeddings"
    config = {**SMALLEST, "dataset": f"dataset:{dataset['id']}", "student": 2}
    accepted = client.post("/v1/jobs:validate", json=config | {"task": "embeddings", "method": "kd"})
    assert accepted.status_code == 200, accepted.text
    for change, pointer in (
        ({"method": "none"}, "/method"),
        ({"method": "theseus"}, "/method"),
        ({"task": "regression"}, "/task"),
    ):
        refused = client.post("/v1/jobs:validate", json=config | {"task": "embeddings"} | change)
        assert refused.status_code == 422
        assert pointer in {one["pointer"] for one in refused.json()["errors"]}


def test_texts_alone_go_up_and_are_learned_from_and_taken_as_unlabelled(client: TestClient) -> None:
    """Guards uploads without any label: their profile, their preview, and both kinds of job that want them."""
    content = "\n".join(row["text"] for row in examples("multi_label", 60)).encode()
    answer = client.post("/v1/datasets", files={"train": ("corpus.txt", content)})
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert dataset["profile"]["task"] == "masked_lm"
    assert dataset["profile"]["columns"] == {"text": "text", "text_pair": None, "label": None}
    rows = client.get(f"/v1/datasets/{dataset['id']}/preview?rows=2").json()["rows"]
    assert [set(row) for row in rows] == [{"text"}, {"text"}]
    reference = f"dataset:{dataset['id']}"
    config = {**SMALLEST, "dataset": reference, "student": 2, "method": "distilbert"}
    accepted = client.post("/v1/jobs:validate", json=config)
    assert accepted.status_code == 200, accepted.text
    assert client.post("/v1/jobs:validate", json=config | {"task": "embeddings", "method": "kd"}).status_code == 200
    refused = client.post("/v1/jobs:validate", json=config | {"method": "patient"})
    assert refused.json()["errors"][0]["pointer"] == "/method"
    extra = {"augmentation": {"type": "unlabelled", "source": reference}}
    job = {**SMALLEST, "method": "kd", "training": extra}
    assert client.post("/v1/jobs:validate", json=job).status_code == 200
    types = [one["type"] for one in client.get("/v1/tasks").json()["data"]]
    assert "masked_lm" in types


def test_students_that_find_masked_tokens_answer(client: TestClient, house: Services, tmp_path: Path) -> None:
    """Guards the shape of fill-mask on every road, and a text without a mask, which is named; and against an answer of
    megabytes for a few words, as each token comes with its whole text."""
    model = student(client, house, tmp_path / "words", "masked_lm", [])
    ask, one, two = f"/v1/models/{model}/predict", "Return the [MASK].", "Return [MASK] [MASK]."
    found = client.post(ask, json={"inputs": [one, two], "parameters": {"top_k": 2}}).json()
    assert [set(each) for each in found[0]] == [{"score", "token", "token_str", "sequence"}] * 2
    assert [len(each) for each in found[1]] == [2, 2]
    assert client.post(f"/v1/models/{model}/inference", json={"inputs": one}).json()[:2] == found[0]
    refused = client.post(ask, json={"inputs": [one, "Return it."]}).json()
    assert refused["errors"][0]["pointer"] == "/inputs/1"
    for text, top_k, pointer in (
        (one, 101, "/parameters/top_k"),
        (one, 10**40, "/parameters/top_k"),
        (one, "all", "/parameters/top_k"),
        ("[MASK] " * 11, 100, "/inputs"),
    ):
        refused = client.post(ask, json={"inputs": text, "parameters": {"top_k": top_k}})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer)
    assert len(client.post(ask, json={"inputs": one, "parameters": {"top_k": 100}}).json()) == 100
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [one]}
    (output,) = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert output["name"] == "answer"
    assert json.loads(output["data"][0])[:2] == found[0]


def test_only_students_of_images_are_sent_more_than_a_document(
    client: TestClient, house: Services, tmp_path: Path
) -> None:
    """Guards against 14 MiB of JSON that are parsed, while nobody else is answered, before a 404 or a 413."""
    model = student(client, house, tmp_path / "number", "regression", [])
    headers = {"Content-Type": "application/json"}
    broken = b"[],"
    for path in ("/v1/models/{}/predict", "/v1/models/{}/inference", "/v2/models/{}/infer"):
        unknown = client.post(path.format("mdl_none"), content=broken, headers=headers)
        assert unknown.status_code == 404, unknown.text
        large = client.post(path.format(model), content=broken * 500_000, headers=headers)
        assert large.status_code == 413, large.text


def test_the_open_inference_protocol_answers_for_tasks_without_one_label(
    client: TestClient, house: Services, tmp_path: Path
) -> None:
    """Guards answers that are no label: they come as JSON, one for each text."""
    model = student(client, house, tmp_path / "qa", "question_answering", [])
    assert [one["name"] for one in client.get(f"/v2/models/{model}").json()["inputs"]] == ["question", "context"]
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [text]}
        for name, text in (("question", "What is returned?"), ("context", "Return the number of items."))
    ]
    (output,) = client.post(f"/v2/models/{model}/infer", json={"inputs": tensors}).json()["outputs"]
    assert output["name"] == "answer"
    assert set(json.loads(output["data"][0])) == {"score", "start", "end", "answer"}
