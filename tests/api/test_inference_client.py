"""Hugging Face's own client asks students of every task at ``/inference``: it is written for the hub's servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient

from limbeck.config import TASKS
from limbeck.runtime import Predictor
from tests.api.conftest import add_model
from tests.api.test_aliases import contents
from tests.api.test_process import Served, serve
from tests.exported import texts
from tests.images import LABELS as DIGITS
from tests.images import write_image_model
from tests.tiny import write_tiny_bert

LABELS = {"sequence_classification": ["a", "b", "c"], "token_classification": ["O", "B-x", "B-y"]}
TEXT = "Return the window that has the focus."


def write(task_type: str, folder: Path) -> Path:
    """A student with random weights, as a job leaves it."""
    from transformers import AutoConfig, AutoModelForImageClassification

    from limbeck.graph import write_graph

    task, labels = TASKS[task_type](), LABELS.get(task_type, [])
    if task_type == "image_classification":
        write_image_model("vit", folder, head=True)
        config = AutoConfig.from_pretrained(folder)
        model, labels = AutoModelForImageClassification.from_pretrained(folder), list(DIGITS)
    else:
        write_tiny_bert(folder, layers=1)
        config = AutoConfig.from_pretrained(folder)
        task.configure(config, labels)
        torch.manual_seed(0)  # of other draws there are taggers that see no entity
        model = task.model_class().from_config(config)
    (folder / "onnx").mkdir()
    write_graph(model.train(False), task, folder / "onnx" / "model.onnx")
    described = {"version": 1, "task": task_type, "labels": labels, "max_length": 32, "pair": False}
    described |= task.described(config) | ({"mask": "[MASK]"} if task.of_words else {})
    (folder / "limbeck.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), {}) as one:
        yield one


@pytest.fixture
def ask(served: Served, tmp_path: Path) -> Callable[[str], tuple[InferenceClient, Predictor]]:
    """The client of a student of a task, and the student as it answers without a server."""

    def made(task: str) -> tuple[InferenceClient, Predictor]:
        folder = write(task, tmp_path / "student")
        model = add_model(served.house, contents(folder))
        return InferenceClient(model=f"{served.url}/v1/models/{model}/inference"), Predictor.load(folder)

    return made


Ask = Callable[[str], tuple[InferenceClient, Predictor]]


def test_text_classification(ask: Ask) -> None:
    client, student = ask("sequence_classification")
    (text,) = texts(1)
    found = client.text_classification(text)
    expected = student.predict(text, top_k="all")
    assert [one.label for one in found] == [one["label"] for one in expected]
    assert [one.score for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_token_classification(ask: Ask) -> None:
    """Guards against a parameter that is refused, and that nobody sent."""
    client, student = ask("token_classification")
    found = client.token_classification(TEXT)
    assert found
    assert [dict(one)["word"] for one in found] == [one["word"] for one in student.predict(TEXT)]
    assert all(one.entity_group and TEXT[one.start : one.end] for one in found)


def test_question_answering(ask: Ask) -> None:
    """Guards against a list in a list, where the client promises one answer."""
    client, student = ask("question_answering")
    asked = {"question": "What is returned?", "context": TEXT}
    expected = student.predict(asked)["answer"]
    for top_k in (None, 1):
        found: Any = client.question_answering(**asked, top_k=top_k)
        assert found.answer == expected == TEXT[found.start : found.end]
    several: Any = client.question_answering(**asked, top_k=3)
    assert several[0].answer == expected
    assert len(several) == 3


def test_image_classification(ask: Ask, tmp_path: Path) -> None:
    """Guards against 415 for an image that is sent as it is: the client does so where no parameter is given."""
    from PIL import Image

    client, student = ask("image_classification")
    path = tmp_path / "digit.png"
    Image.effect_noise((8, 8), 99).convert("RGB").save(path)
    expected = [one["label"] for one in student.predict(path)]
    for given in (path, str(path), path.read_bytes()):
        assert [one.label for one in client.image_classification(given)] == expected
        assert [one.label for one in client.image_classification(given, top_k=2)] == expected[:2]
    address = str(client.model)
    refused = httpx.post(address, content=b"no image", headers={"Content-Type": "image/png"})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/inputs")
    assert httpx.post(address, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_feature_extraction(ask: Ask) -> None:
    """Guards against parameters beside the inputs, which this client sends here alone."""
    client, student = ask("embeddings")
    expected = student.predict(TEXT)
    assert client.feature_extraction(TEXT)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert client.feature_extraction([TEXT, "x"], normalize=True, truncate=True)[0].tolist() == pytest.approx(
        expected, abs=1e-5
    )
    refused = httpx.post(str(client.model), json={"inputs": TEXT, "normalize": False})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/normalize")


def test_sentence_similarity(ask: Ask) -> None:
    """One of the sentences is the first one itself, and there are more than a batch of the server has rows."""
    client, student = ask("embeddings")
    others = [TEXT, *texts(150)]
    found = client.sentence_similarity(TEXT, other_sentences=others)
    vectors = np.array(student.predict(others))
    assert found == pytest.approx((vectors @ vectors[0]).tolist(), abs=1e-5)
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert len({round(one, 4) for one in found}) > 100


@pytest.mark.parametrize(
    ("inputs", "pointer", "detail"),
    [
        ({"source_sentence": TEXT}, "/inputs/sentences", "found null; allowed: a list of at least one text"),
        ({"source_sentence": TEXT, "sentences": []}, "/inputs/sentences", "found an empty list; allowed: a list of at"),
        ({"sentences": ["x"]}, "/inputs/source_sentence", "this field is required"),
        ({"source_sentence": TEXT, "sentences": ["x", 1]}, "/inputs/sentences/1", "found a number; allowed: a text"),
        (
            {"source_sentence": TEXT, "sentences": ["x"], "y": 1},
            "/inputs/y",
            "there is no such field; allowed: ",
        ),
    ],
)
def test_a_comparison_that_is_none_is_named(ask: Ask, inputs: Any, pointer: str, detail: str) -> None:
    client, _ = ask("embeddings")
    refused = httpx.post(str(client.model), json={"inputs": inputs})
    (problem,) = refused.json()["errors"]
    assert (refused.status_code, problem["pointer"]) == (422, pointer)
    assert problem["detail"].startswith(detail)


def test_fill_mask(ask: Ask) -> None:
    client, student = ask("masked_lm")
    text = "Return the [MASK]."
    for found, expected in (
        (client.fill_mask(text), student.predict(text)),
        (client.fill_mask(text, top_k=2), student.predict(text, top_k=2)),
    ):
        assert [one.token for one in found] == [one["token"] for one in expected]
        assert [one.token_str for one in found] == [one["token_str"] for one in expected]
