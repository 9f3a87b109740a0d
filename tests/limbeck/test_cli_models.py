"""``limbeck download``, ``alias`` and ``predict``, against a small server that answers as the API does."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.limbeck.scripted_api import SUCCEEDED, Api
from tests.limbeck.scripted_cli import refusing, run


def test_download_resolves_a_job_to_its_student(api: Api, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("config.json"))
    api.job(SUCCEEDED)
    api.answer("GET /v1/models/mdl_9/download?format=onnx", buffer.getvalue())
    target = tmp_path / "student"
    result = run(api, "download", "job_1", "--output", str(target), "--format", "onnx")
    assert result.exit_code == 0, result.stderr
    assert (target / "config.json").exists()
    again = run(api, "download", "job_1", "--output", str(target))
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_aliases_are_made_shown_and_removed(api: Api) -> None:
    made = {"name": "reviews", "model": "mdl_9", "version": 3, "updated_at": "2026-01-01T00:00:00Z"}
    api.answer("GET /v1/jobs/job_1", SUCCEEDED)
    api.answer("PUT /v1/aliases/reviews", made)
    assert run(api, "alias", "reviews", "job_1").stdout == "reviews\tmdl_9\tversion 3\n"
    assert json.loads(api.requests[-1][1]) == {"model": "mdl_9"}
    api.answer("GET /v1/aliases/reviews", made)
    assert json.loads(run(api, "alias", "reviews", "--json").stdout)["model"] == "mdl_9"
    api.answer("GET /v1/aliases", {"data": [made]})
    assert "mdl_9" in run(api, "aliases").stdout
    api.answer("GET /v1/aliases", {"data": []})
    assert "limbeck alias NAME MODEL" in run(api, "aliases").stderr
    api.answer("DELETE /v1/aliases/reviews", b"")
    assert "is gone" in run(api, "alias", "reviews", "--delete").stderr
    count = len(api.requests)
    assert (run(api, "alias", "reviews", "job_1", "--delete").exit_code, len(api.requests)) == (2, count)


def test_predict_prints_labels(api: Api) -> None:
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 0.91234}])
    assert run(api, "predict", "mdl_9", "some text").stdout == "good\t0.9123\n"
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": ["some text"]}


@pytest.mark.parametrize("text", ["How do I convert a picture to .png", "a word " * 100 + ".gif", "~nobody-here/x.png"])
def test_predict_takes_a_text_that_ends_as_a_picture_does(api: Api, text: str) -> None:
    """Guards against a student of texts that cannot be asked about files."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 0.91234}])
    assert run(api, "predict", "mdl_9", text).stdout == "good\t0.9123\n"
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": [text]}


def test_predict_passes_the_speed_on(api: Api, exported_exits_student: Path) -> None:
    """Guards an option that is read and dropped, also where no server is asked."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 0.91234}])
    assert run(api, "predict", "mdl_9", "some text", "--speed", "0").exit_code == 0
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": ["some text"], "parameters": {"speed": 0}}
    local = ("predict", "--local", str(exported_exits_student), "some text")
    assert run(api, *local, "--speed", "0").stdout != run(api, *local, "--speed", "1").stdout


def test_predict_streams_jsonl_in_its_order(api: Api) -> None:
    """Guards against answers that stand beside the wrong input, also across batches."""

    def label(body: bytes) -> tuple[int, Any]:
        inputs = json.loads(body)["inputs"]
        return 200, [{"label": one["text"] if isinstance(one, dict) else one, "score": 1.0} for one in inputs]

    api.routes["POST /v1/models/mdl_9/predict"] = label
    given = [f"text {number}" if number % 2 else {"text": f"text {number}", "id": number} for number in range(70)]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, given)))
    answers = [json.loads(line)["prediction"]["label"] for line in result.stdout.splitlines()]
    assert answers == [f"text {number}" for number in range(70)]
    assert len(api.requests) == 3


def test_predict_sends_no_more_than_a_request_may_have(api: Api, tmp_path: Path) -> None:
    """Guards photos, and long texts, of which 32 are more than the server takes: each is small enough alone."""
    sent: list[int] = []

    def label(body: bytes) -> tuple[int, Any]:
        sent.append(len(body))
        return 200, [{"label": one[:2], "score": 1.0} for one in json.loads(body)["inputs"]]

    api.routes["POST /v1/models/mdl_9/predict"] = label
    given = [f"{number:02}" + "ä" * size for number, size in enumerate([40_000] * 32 + [1_500_000, 10])]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, given)))
    answers = [json.loads(line)["prediction"]["label"] for line in result.stdout.splitlines()]
    assert answers == [f"{number:02}" for number in range(34)]
    *several, large, last = sent
    assert max(several) < 1024**2
    assert (large > 1024**2, last < 100) == (True, True)


@pytest.mark.parametrize("masks", [1, 2])
def test_predict_prints_masked_tokens(api: Api, masks: int) -> None:
    """Guards the shapes of fill-mask: a list for a text, and a list of lists for one with several masks."""
    tokens = [{"score": 0.5, "token": 7, "token_str": word, "sequence": f"a {word}"} for word in ("socket", "file")]
    api.answer("POST /v1/models/mdl_9/predict", [tokens if masks == 1 else [tokens] * masks])
    assert run(api, "predict", "mdl_9", "a [MASK]").stdout == "socket\t0.5000\nfile\t0.5000\n" * masks


def test_an_empty_text_of_jsonl_is_asked_as_it_stands(api: Api) -> None:
    """Guards against an empty object, or a pair that loses its second text, which the server then refuses."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 1.0}] * 3)
    given = [{"text": ""}, {"text": "a", "text_pair": ""}, {"text": "a", "text_pair": None}]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, given)))
    assert result.exit_code == 0
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": [*given[:2], {"text": "a"}]}


def test_rows_of_a_data_set_are_asked_by_their_tokens(api: Api) -> None:
    """Guards tags and ids, which a student is not asked about, and texts that have their tokens beside them."""
    api.answer("POST /v1/models/mdl_9/predict", [[], []])
    rows = [{"id": "7", "tokens": ["John", "lives"], "tags": ["B-PER", "O"]}, {"text": "a b", "tokens": ["a", "b"]}]
    result = run(api, "predict", "mdl_9", "--file", "-", stdin="\n".join(map(json.dumps, rows)))
    assert result.exit_code == 0
    assert api.body("POST /v1/models/mdl_9/predict") == {"inputs": [{"tokens": ["John", "lives"]}, {"text": "a b"}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "Line 2 is not JSON"),
        ('{"txt": "a"}', "Line 2 is neither"),
        ('{"text": "a", "text_pair": 7}', "Line 2 has no text in `text_pair`: 7"),
        ('"caf\udce9"', "Line 2 is not UTF-8"),
        ("[" * 100_000, "Line 2 is not JSON"),
        ('"\\ud800"', "Line 2 holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(api: Api, tmp_path: Path, line: str, message: str) -> None:
    """And those in front of it are answered."""
    api.answer("POST /v1/models/mdl_9/predict", [{"label": "good", "score": 1.0}])
    file = tmp_path / "in.jsonl"
    file.write_text(f'\ufeff"fine"\n{line}\n', encoding="utf-8", errors="surrogateescape")
    result = run(api, "predict", "mdl_9", "--file", str(file))
    assert result.exit_code == 2
    assert message in result.stderr
    assert [json.loads(one)["input"] for one in result.stdout.splitlines()] == ["fine"]


def test_a_line_that_the_student_refuses_is_named(api: Api, exported_student: Path, tmp_path: Path) -> None:
    """Guards against a place in a batch that nobody finds in a file; and those in front of it are answered."""
    api.routes["POST /v1/models/mdl_9/predict"] = refusing
    bad = [{"text": "a", "text_pair": "b"}] * 2
    given = [*(f"text {number}" for number in range(300)), *bad, "text"]
    file = tmp_path / "in.jsonl"
    file.write_text("\n\n".join(map(json.dumps, given)))  # with a blank line between them
    for asked in (("mdl_9",), ("--local", str(exported_student))):
        result = run(api, "predict", *asked, "--file", str(file))
        assert result.exit_code == 2
        assert "Line 601 cannot be asked: /text_pair: " in result.stderr
        assert "leave text_pair out" in result.stderr
        assert [json.loads(one)["input"] for one in result.stdout.splitlines()] == given[:300]
