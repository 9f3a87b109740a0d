"""Data sets over HTTP: streamed to disk, checked before anything is stored, and nothing left behind by a refusal."""

from __future__ import annotations

import csv
import fcntl
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from api.app import create_app
from api.deps import Services
from limbeck.errors import StorageFull, Unavailable
from models.job import JobStatus
from models.settings import Settings
from models.storage import Stored
from models.storage.local import LocalStorage
from tests.api.conftest import become
from tests.tiny import docstrings

ROWS = [(text, area) for area in ("gui", "testing") for text in docstrings(area)[:40]]


def as_csv(rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().encode()


def nothing_stored(client: TestClient, house: Services) -> bool:
    left = [path for path in house.scratch.rglob("*") if path.is_file()] if house.scratch.exists() else []
    return client.get("/v1/datasets").json()["data"] == [] and not list(house.storage.list()) and not left


@pytest.fixture
def dataset(client: TestClient) -> dict[str, Any]:
    answer = client.post("/v1/datasets", files={"train": ("areas.csv", as_csv(ROWS))})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_upload_is_stored_with_the_splits_that_it_lacked(client: TestClient, dataset: dict[str, Any]) -> None:
    assert dataset["object"] == "dataset"
    assert dataset["name"] == "areas"
    assert set(dataset["splits"]) == {"train", "validation", "test"}
    assert sum(split["rows"] for split in dataset["splits"].values()) == len(ROWS)
    assert "key" not in dataset["splits"]["train"]
    assert client.get(f"/v1/datasets/{dataset['id']}").json() == dataset
    assert client.get("/v1/datasets").json()["data"] == [dataset]


def test_the_preview_shows_what_is_learned_from(client: TestClient, dataset: dict[str, Any]) -> None:
    answer = client.get(f"/v1/datasets/{dataset['id']}/preview?split=test&rows=2").json()
    assert (answer["split"], len(answer["rows"])) == ("test", 2)
    assert tuple(answer["rows"][0].values()) in ROWS
    assert client.get(f"/v1/datasets/{dataset['id']}/preview?split=dev").status_code == 422


def test_what_a_killed_process_left_of_an_upload_goes(settings: Settings) -> None:
    """Guards the disk: gigabytes each time, which nobody would ever remove."""
    assert settings.scratch_dir is not None

    def left_behind(name: str) -> Path:
        lock = settings.data_dir / "scratch" / name / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        os.utime(lock, (1, 1))
        return lock.parent

    before, live = left_behind("upload-1"), left_behind("upload-2")
    with (live / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with TestClient(create_app(settings)) as client:
            assert (before.exists(), live.exists()) == (False, True)
            later = left_behind("upload-3")
            client.post("/v1/datasets", files={"train": ("a.csv", b"")})
            assert (later.exists(), live.exists()) == (False, True)


def test_what_lies_in_a_bucket_is_fetched_to_be_shown(
    client: TestClient, house: Services, dataset: dict[str, Any]
) -> None:
    class Bucket(LocalStorage):
        def local_path(self, key: str) -> Path | None:
            return None

        def size(self, key: str) -> int:
            return self._path(key).stat().st_size

    before = client.get(f"/v1/datasets/{dataset['id']}/preview").json()
    object.__setattr__(house, "storage", Bucket(house.settings.data_dir / "storage"))
    assert client.get(f"/v1/datasets/{dataset['id']}/preview").json() == before
    assert not list(house.scratch.glob("upload-*"))


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("d.jsonl", "\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS).encode()),
        ("d.tsv", "\n".join(["text\tlabel", *(f"{text}\t{label}" for text, label in ROWS)]).encode()),
        ("d.csv.gz", gzip.compress(as_csv(ROWS))),
    ],
    ids=["jsonl", "tsv", "csv.gz"],
)
def test_the_same_rows_are_the_same_data_in_every_format(
    client: TestClient, dataset: dict[str, Any], filename: str, content: bytes
) -> None:
    answer = client.post("/v1/datasets", files={"train": (filename, content)}, data={"name": "other"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["sha256"] == dataset["sha256"]
    assert answer.json()["name"] == "other"


def test_columns_can_be_named(client: TestClient) -> None:
    files = {"train": ("d.csv", as_csv(ROWS, ("review", "stars")))}
    answer = client.post("/v1/datasets", files=files, data={"text": "review", "label": "stars"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["profile"]["columns"]["text"] == "review"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (as_csv([(text, "one") for text, _ in ROWS]), "one"),
        (as_csv([*ROWS[:5], ("", "gui"), *ROWS[5:]]), "row"),
        (b"text,label\na,b,c\n", "row"),
        (b"text,label\n\xff\xfe,b\n", "UTF-8"),
        (b"", "empty"),
        (as_csv(ROWS, ("body", "kind")), "column"),
    ],
    ids=["one class", "empty text", "ragged row", "broken UTF-8", "empty file", "missing column"],
)
def test_bad_data_gets_422_and_leaves_nothing(client: TestClient, house: Services, content: bytes, said: str) -> None:
    answer = client.post("/v1/datasets", files={"train": ("d.csv", content)})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_dataset"), answer.text
    assert said.casefold() in answer.text.casefold()
    assert nothing_stored(client, house)


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        ({"files": {"validation": ("d.csv", b"x")}}, "/train"),
        ({"files": {"train": ("d.csv", b"x"), "dev": ("d.csv", b"x")}}, "/dev"),
        ({"files": [("train", ("a.csv", b"x")), ("train", ("b.csv", b"x"))]}, "/train"),
        ({"files": {"train": ("d.csv", b"x")}, "data": {"colour": "red"}}, "/colour"),
        ({"files": {"train": ("d.csv", b"x")}, "data": {"name": "x" * 201}}, "/name"),
        ({"files": {"train": ("d.csv", b"x")}, "data": {"name": "x" * 20_000}}, "/name"),
        ({"files": {"train": ("d.csv", b"x")}, "data": {"name": "a\x00b"}}, "/name"),
        ({"files": {"x": (None, b"x")}, "data": {}}, "/x"),
        ({"files": {"train": (None, b"x")}}, "/train"),
    ],
)
def test_a_wrong_form_is_refused_part_by_part(
    client: TestClient, house: Services, form: dict[str, Any], pointer: str
) -> None:
    answer = client.post("/v1/datasets", **form)
    assert answer.status_code == 422, answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    assert nothing_stored(client, house)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": "multipart/form-data; boundary=b"},
    ],
    ids=str,
)
def test_what_is_no_form_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/v1/datasets", content=b"--b\r\nnot a form", headers=headers).status_code == 422


def test_a_form_that_ends_early_is_not_taken_for_a_whole_one(client: TestClient, house: Services) -> None:
    """A proxy that cuts an upload would otherwise leave a data set with half of its rows."""
    head = b'--b\r\nContent-Disposition: form-data; name="train"; filename="d.csv"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/datasets", content=head + as_csv(ROWS), headers=headers)
    assert answer.status_code == 422, answer.text
    assert nothing_stored(client, house)


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_over_the_limit_gets_413_and_leaves_nothing(
    client: TestClient, house: Services, announced: bool
) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="train"; filename="d.csv"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(30):
            yield b"x" * 100_000

    content = b"".join(body()) if announced else body()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/datasets", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "2000000" in answer.json()["detail"]
    assert nothing_stored(client, house)


def test_a_storage_that_fills_up_in_the_middle_leaves_nothing(client: TestClient, house: Services) -> None:
    whole = house.storage

    class Filling:
        def __init__(self) -> None:
            self.taken = 0

        def put_file(self, path: Path, key: str, *, move: bool = False) -> Stored:
            self.taken += 1
            if self.taken == 3:
                raise StorageFull("There is no room left.")
            return whole.put_file(path, key, move=move)

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

    object.__setattr__(house, "storage", Filling())
    answer = client.post("/v1/datasets", files={"train": ("areas.csv", as_csv(ROWS))})
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert nothing_stored(client, house)


def test_files_whose_row_may_be_there_are_left(
    client: TestClient, house: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a data set or a model without its files: the database went away behind the commit."""
    whole = house.database.session

    @contextmanager
    def cut_off() -> Iterator[Session]:
        with whole() as session:
            yield session
        raise Unavailable("The connection broke off.")

    with monkeypatch.context() as away:
        away.setattr(house.database, "session", cut_off)
        assert client.post("/v1/datasets", files={"train": ("areas.csv", as_csv(ROWS))}).status_code == 503
    (made,) = client.get("/v1/datasets").json()["data"]
    assert client.get(f"/v1/datasets/{made['id']}/preview").status_code == 200


def test_a_data_set_in_use_is_kept(
    client: TestClient, house: Services, dataset: dict[str, Any], submit: Callable[..., dict[str, Any]]
) -> None:
    job = submit(dataset=f"dataset:{dataset['id']}")["id"]
    answer = client.delete(f"/v1/datasets/{dataset['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert job in answer.json()["detail"]
    become(house, job, JobStatus.FAILED)
    assert client.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    assert nothing_stored(client, house)
    assert client.get(f"/v1/datasets/{dataset['id']}").status_code == 404


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/jobs:validate"])
def test_columns_and_splits_that_an_upload_has_not_are_refused_before_there_is_a_job(
    client: TestClient, dataset: dict[str, Any], route: str
) -> None:
    """Guards against a job that waits for its turn and then fails: what the upload called a column is not kept."""
    source = f"dataset:{dataset['id']}"
    body: dict[str, Any] = {"teacher": "builtin:minilm-l6", "method": "kd"}

    def told(**changes: Any) -> dict[str, str]:
        answer = client.post(route, json=body | changes)
        return {} if answer.is_success else {one["pointer"]: one["detail"] for one in answer.json()["errors"]}

    wrong = {"columns": {"text": "review", "label": "stars"}, "splits": {"validation": "dev"}}
    assert told(dataset={"source": source, **wrong}) == {
        "/dataset/columns/text": "found no column 'review' in train; it has 'text', 'label'; "
        "uploads are stored under these names",
        "/dataset/columns/label": "found no column 'stars' in train; it has 'text', 'label'; "
        "uploads are stored under these names",
        "/dataset/splits/validation": "found no split 'dev'; allowed: 'test', 'train', 'validation'; "
        "uploads are stored under these names",
    }
    found = told(dataset={"source": source, "columns": {"question": "text"}})
    assert "the columns of sequence_classification are text, text_pair, label" in found["/dataset/columns/question"]
    # Of another task one thing is told.
    assert list(told(dataset={"source": source, "columns": {"question": "q"}}, task="question_answering")) == ["/task"]
    extra = {"type": "unlabelled", "source": source, "split": "dev", "columns": {"text": "body"}}
    assert list(told(dataset=source, training={"augmentation": extra})) == [
        "/training/augmentation/0/split",
        "/training/augmentation/0/columns/text",
    ]
    right = {"columns": {"text": "text", "label": "label"}, "splits": {"test": "validation", "validation": "test"}}
    extra = {"type": "unlabelled", "source": source, "split": "test", "columns": {"text": "text"}}
    assert told(dataset={"source": source, **right}, training={"augmentation": extra}) == {}


def test_labels_of_an_uploaded_data_set_are_held_against_the_job(client: TestClient, dataset: dict[str, Any]) -> None:
    body = {"teacher": "builtin:minilm-l6", "dataset": f"dataset:{dataset['id']}", "method": "kd"}
    assert client.post("/v1/jobs:validate", json=body).status_code == 200
