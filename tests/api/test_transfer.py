"""Downloads: the same bytes every time, ranges that fit together, and no byte from another version."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.deps import Services
from api.downloads import Archive, Downloads
from models.repository import catalogue
from models.storage.local import LocalStorage
from tests.api.conftest import add_model, sha256

FILES = {
    "config.json": b'{"a": 1}',
    "hard_samples.csv": b"split,row,text",
    "hard_samples.parquet": b"PAR1",
    "limbeck.json": b"{}",
    "model.safetensors": bytes(range(256)) * 400,
    "onnx/model.onnx": b"graph" * 999,
    "onnx/model.onnx_data": b"weights",
    "onnx/model_int8.onnx": b"small" * 99,
    "tokenizer.json": b"{}",
}
SIDE = {"config.json", "limbeck.json", "tokenizer.json"}
BODY = FILES["model.safetensors"]


@pytest.fixture
def model(house: Services) -> str:
    return add_model(house, FILES)


@pytest.fixture
def url(model: str) -> str:
    return f"/v1/models/{model}/files/model.safetensors"


def unpacked(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def test_a_file_comes_whole_with_its_hash(client: TestClient, url: str) -> None:
    answer = client.get(url)
    assert (answer.status_code, answer.content) == (200, BODY)
    assert answer.headers["etag"] == f'"{sha256(BODY)}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(BODY))
    assert 'filename="model.safetensors"' in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, len(BODY)),
        ("bytes=-5", len(BODY) - 5, len(BODY)),
        ("bytes=-9999999", 0, len(BODY)),
        ("bytes=5-9999999", 5, len(BODY)),
        (f"bytes={len(BODY) - 1}-", len(BODY) - 1, len(BODY)),
    ],
)
def test_a_range_is_exactly_that_range(client: TestClient, url: str, wanted: str, start: int, end: int) -> None:
    answer = client.get(url, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, BODY[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(BODY)}"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["etag"] == f'"{sha256(BODY)}"'


@pytest.mark.parametrize("wanted", [f"bytes={len(BODY)}-", f"bytes={len(BODY)}-{len(BODY) + 5}", "bytes=-0"])
def test_a_range_behind_the_end_is_416_with_the_size(client: TestClient, url: str, wanted: str) -> None:
    answer = client.get(url, headers={"Range": wanted})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(BODY)}"


@pytest.mark.parametrize(
    "wanted",
    ["bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes 0-1", "", f"bytes={'9' * 5000}-"],
    ids=lambda wanted: wanted[:20],
)
def test_a_range_that_is_not_understood_gets_the_whole(client: TestClient, url: str, wanted: str) -> None:
    answer = client.get(url, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, BODY)


def test_if_range_protects_from_gluing_two_versions_together(client: TestClient, url: str) -> None:
    etag = f'"{sha256(BODY)}"'
    assert client.get(url, headers={"Range": "bytes=5-", "If-Range": etag}).status_code == 206
    for other in ('"0000"', f"W/{etag}", "Tue, 24 Nov 2026 02:13:26 GMT"):
        answer = client.get(url, headers={"Range": "bytes=5-", "If-Range": other})
        assert (answer.status_code, answer.content) == (200, BODY), other


def test_if_none_match_answers_304(client: TestClient, url: str) -> None:
    etag = f'"{sha256(BODY)}"'
    for header in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = client.get(url, headers={"If-None-Match": header, "Range": "bytes=0-1"})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag), header
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["files/model.safetensors", "download"])
def test_head_has_the_headers_of_get_and_no_body(client: TestClient, model: str, path: str) -> None:
    got = client.get(f"/v1/models/{model}/{path}")
    head = client.head(f"/v1/models/{model}/{path}")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-length", "content-type", "accept-ranges", "content-disposition"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    ("form", "more"),
    [
        ("safetensors", {"model.safetensors"}),
        ("onnx", {"onnx/model.onnx", "onnx/model.onnx_data"}),
        ("onnx-int8", {"onnx/model_int8.onnx"}),
    ],
)
def test_each_format_has_its_weights_and_what_lies_beside_them(
    client: TestClient, model: str, form: str, more: set[str]
) -> None:
    """No archive holds the table of hard samples, whose texts are the data set's; by its name it can be had."""
    answer = client.get(f"/v1/models/{model}/download?format={form}")
    assert client.get(f"/v1/models/{model}/files/hard_samples.csv").content == FILES["hard_samples.csv"]
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["etag"] == f'"{sha256(answer.content)}"'
    assert f'filename="{model}-{form}.tar.gz"' in answer.headers["content-disposition"]
    assert unpacked(answer.content) == {f"{model}/{name}": FILES[name] for name in SIDE | more}


def test_an_archive_is_the_same_bytes_when_it_is_packed_again(
    client: TestClient, house: Services, model: str, tmp_path: Path
) -> None:
    """Two API processes with two scratch folders have to continue each other's downloads."""
    first = client.get(f"/v1/models/{model}/download").content
    with house.database.reading() as session:
        row, files = catalogue.get_model(session, model), catalogue.model_files(session, model)
    again = Downloads(house.storage, tmp_path / "elsewhere", 10**9).archive(row, files[::-1], "safetensors")
    assert again.path.read_bytes() == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert {(entry.uid, entry.gid, entry.uname, entry.mode) for entry in archive} == {(0, 0, "", 0o644)}
    assert gzip.decompress(first)


def test_a_download_that_broke_off_goes_on_although_the_cache_was_lost(
    client: TestClient, house: Services, model: str
) -> None:
    url = f"/v1/models/{model}/download"
    whole = client.get(url)
    house.downloads.forget(model)
    rest = client.get(url, headers={"Range": "bytes=1000-", "If-Range": whole.headers["etag"]})
    assert (rest.status_code, whole.content[:1000] + rest.content) == (206, whole.content)


def test_a_format_that_the_model_lacks_is_404_and_names_what_there_is(client: TestClient, house: Services) -> None:
    bare = add_model(house, {"config.json": b"{}", "model.safetensors": b"x"})
    answer = client.get(f"/v1/models/{bare}/download?format=onnx")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "safetensors" in answer.json()["detail"]
    wrong = client.get(f"/v1/models/{bare}/download?format=gguf")
    assert wrong.status_code == 422
    assert [one["detail"] for one in wrong.json()["errors"]] == [
        "Input should be 'safetensors', 'onnx', 'onnx-int8', 'onnx-int8-static' or 'onnx-fp16'; found 'gguf'"
    ]


def test_what_was_not_packed_to_its_end_goes_when_it_is_old(house: Services, model: str, tmp_path: Path) -> None:
    """Guards the disk: an API that is killed while it packs leaves as much as a model, each time."""
    downloads = Downloads(house.storage, tmp_path / "cache", 10**9)
    old, new = (tmp_path / "cache" / f".{model}.onnx.0.{end}" for end in ("old", "new"))
    for left in (old, new):
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    with house.database.reading() as session:
        row, files = catalogue.get_model(session, model), catalogue.model_files(session, model)
    downloads.archive(row, files, "onnx")
    assert (old.exists(), new.exists()) == (False, True)


def test_the_cache_of_archives_keeps_its_limit_and_the_newest(house: Services, tmp_path: Path) -> None:
    downloads = Downloads(house.storage, tmp_path / "cache", 1)
    for _ in range(3):
        model = add_model(house, FILES)
        with house.database.reading() as session:
            kept = downloads.archive(
                catalogue.get_model(session, model), catalogue.model_files(session, model), "safetensors"
            )
    assert [path for path in (tmp_path / "cache").iterdir()] == [kept.path]


class Shared(type(Path())):  # type: ignore[misc]
    """A folder of which others remove an archive between the moment in which it is listed and the next."""

    def glob(self, pattern: str) -> Iterator[Path]:
        found = list(super().glob(pattern))
        for path in found:
            if path.name.endswith(".tar.gz"):
                path.unlink(missing_ok=True)
        yield from found


def test_packing_does_not_mind_what_others_remove_meanwhile(house: Services, tmp_path: Path) -> None:
    """Guards a download against another one's that comes to its end in the same moment, and keeps the cache's limit."""
    downloads = Downloads(house.storage, Shared(tmp_path / "cache"), 1)
    for _ in range(2):
        model = add_model(house, FILES)
        with house.database.reading() as session:
            row, files = catalogue.get_model(session, model), catalogue.model_files(session, model)
        first = downloads.archive(row, files, "safetensors")
        again = downloads.archive(row, files, "safetensors")
        assert (again.bytes, again.sha256) == (first.bytes, first.sha256)
    assert not downloads._locks


def test_an_archive_that_is_removed_before_it_is_read_is_packed_again(
    client: TestClient, house: Services, model: str, tmp_path: Path
) -> None:
    class Hasty(Downloads):
        removed = 0

        def archive(self, *asked: Any) -> Archive:
            found = super().archive(*asked)
            if not self.removed:
                self.removed = 1
                found.path.unlink()
            return found

    whole = client.get(f"/v1/models/{model}/download").content
    hasty = Hasty(house.storage, tmp_path / "cache", 10**9)
    client.app.state.services = replace(house, downloads=hasty)  # type: ignore[attr-defined]
    assert client.get(f"/v1/models/{model}/download").content == whole
    assert hasty.removed


def test_a_packing_that_fails_leaves_no_half_archive(house: Services, model: str, tmp_path: Path) -> None:
    class Torn(LocalStorage):
        def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
            yield from ()

    torn = Downloads(Torn(tmp_path / "torn"), tmp_path / "cache", 10**9)
    with house.database.reading() as session:
        row, files = catalogue.get_model(session, model), catalogue.model_files(session, model)
    with pytest.raises(OSError, match="end of data"):
        torn.archive(row, files, "safetensors")
    assert list((tmp_path / "cache").iterdir()) == []


class Signing(LocalStorage):
    """A storage that gives URLs of its own, as a bucket does."""

    def signed_url(self, key: str, seconds: float) -> str | None:
        return f"https://bucket.example/{key}?signature=x&seconds={seconds:.0f}"


def test_a_bucket_is_pointed_to_and_not_read_through(client: TestClient, house: Services, model: str) -> None:
    storage: Any = Signing(house.settings.data_dir / "storage")
    object.__setattr__(house, "storage", storage)
    url = f"/v1/models/{model}/files/config.json"
    answer = client.get(url, headers={"Range": "bytes=0-3"})
    assert answer.status_code == 307
    assert answer.headers["location"].startswith(f"https://bucket.example/models/{model}/config.json?")
    etag = f'"{sha256(FILES["config.json"])}"'
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(url, headers={"If-Range": etag, "Range": "bytes=0-3"}).content == FILES["config.json"][:4]
    assert client.head(url).status_code == 200


def test_a_bucket_that_callers_cannot_reach_is_read_through(client: TestClient, house: Services, model: str) -> None:
    storage: Any = Signing(house.settings.data_dir / "storage")
    object.__setattr__(house, "storage", storage)
    object.__setattr__(house, "settings", house.settings.model_copy(update={"s3_redirect": False}))
    url = f"/v1/models/{model}/files/config.json"
    assert (client.get(url).status_code, client.get(url).content) == (200, FILES["config.json"])
    answer = client.get(url, headers={"Range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (206, FILES["config.json"][:4])
