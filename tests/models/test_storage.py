"""Stored files, in a folder and in a bucket of moto's server."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import ThreadedMotoServer

from limbeck.errors import Interrupted, InvalidInput, NotFound, StorageFull, Unavailable
from models.settings import Settings
from models.storage import LocalStorage, Storage, open_storage
from tests.services import free_port

MB = 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[Settings]:
    """Settings of a bucket, with a prefix in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
    yield Settings(
        storage_url="s3://bucket/some/prefix",
        s3_endpoint=endpoint,
        s3_access_key_id="id",
        s3_secret_access_key="secret",
    )
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(Settings(data_dir=tmp_path / "data"))
    found = open_storage(request.getfixturevalue("s3"))
    found.delete([entry.key for entry in found.list()])
    return found


def _file(folder: Path, content: bytes) -> Path:
    path = folder / f"source-{hashlib.sha256(content).hexdigest()[:8]}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("size", [0, 1, 3 * MB, 21 * MB + 7])
def test_what_comes_out_is_what_went_in(storage: Storage, tmp_path: Path, size: int, move: bool) -> None:
    """Parts of a large upload may be lost, doubled or swapped; the hash must be of what was stored."""
    content = os.urandom(min(size, MB)) * (size // MB + 1)
    content = content[:size]
    source = _file(tmp_path, content)
    stored = storage.put_file(source, "models/m/model.safetensors", move=move)
    assert (stored.bytes, stored.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert source.exists() is not move
    assert storage.size(stored.key) == size
    assert b"".join(storage.open(stored.key)) == content
    storage.get_file(stored.key, tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]


def test_a_transfer_that_nobody_wants_any_more_ends_and_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    """Guards a cancel in the middle of gigabytes; half an object would be taken for one."""
    source = _file(tmp_path, os.urandom(MB) * 30)
    left = 20

    def watch() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted("enough")

    for move in (False, True):
        left = 20
        with pytest.raises(Interrupted, match="enough"):
            storage.put_file(source, "models/m/f", move=move, watch=watch)
        assert not storage.exists("models/m/f")
        assert source.exists()
    storage.put_file(source, "models/m/f")
    left = 2
    with pytest.raises(Interrupted, match="enough"):
        storage.get_file("models/m/f", tmp_path / "new" / "copy", watch=watch)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (0, 1), (5, 9 * MB), (8 * MB - 1, 8 * MB + 1), (10 * MB, None), (3, 99 * MB), (12 * MB, None)],
)
def test_a_range_is_what_a_slice_would_be(storage: Storage, tmp_path: Path, start: int, end: int | None) -> None:
    """A download that is taken up again and off by one byte gives a broken model with the right size."""
    content = os.urandom(MB) * 11
    storage.put_file(_file(tmp_path, content), "models/m/f")
    assert b"".join(storage.open("models/m/f", start, end)) == content[start:end]


def test_what_is_not_there_is_said_at_once(storage: Storage, tmp_path: Path) -> None:
    """After the first byte of an answer its status cannot be changed any more."""
    for call in (storage.open, storage.size):
        with pytest.raises(NotFound, match="models/none"):
            call("models/none")
    with pytest.raises(NotFound):
        storage.get_file("models/none", tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))
    assert not storage.exists("models/none")
    assert storage.local_path("models/none") is None


def test_listing_goes_by_whole_parts(storage: Storage, tmp_path: Path) -> None:
    """Deleting ``jobs/1`` must not take ``jobs/10`` along."""
    source = _file(tmp_path, b"abc")
    keys = ["jobs/1/a", "jobs/1/b/c d+e=f@g,h.txt", "jobs/10/a", "models/1/.gitattributes"]
    for key in keys:
        storage.put_file(source, key)
    assert sorted(entry.key for entry in storage.list("jobs/1")) == keys[:2]
    assert sorted(entry.key for entry in storage.list()) == sorted(keys)
    assert list(storage.list("none")) == []
    entry = next(iter(storage.list("models")))
    assert entry.bytes == 3
    assert abs(entry.modified - datetime.now(UTC)) < timedelta(seconds=60)


def test_deleting_passes_over_what_is_not_there(storage: Storage, tmp_path: Path) -> None:
    """A delete that is repeated after a crash must get on with the rest."""
    source = _file(tmp_path, b"abc")
    storage.put_file(source, "jobs/1/a")
    storage.put_file(source, "jobs/1/b")
    storage.delete(["jobs/1/none", "jobs/1/a"])
    storage.delete([])
    assert [entry.key for entry in storage.list()] == ["jobs/1/b"]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "a/../b",
        "..",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "a\x00b",
        "a\nb",
        "x" * 501,
        ".aside/x",
        "é",
        "a/#",
    ],
)
def test_a_key_that_climbs_or_does_not_fit_is_refused(storage: Storage, tmp_path: Path, key: str) -> None:
    """Paths within uploaded archives become keys."""
    source = _file(tmp_path, b"abc")
    with pytest.raises(InvalidInput, match="cannot be stored"):
        storage.put_file(source, key)
    with pytest.raises(InvalidInput):
        storage.open(key)
    with pytest.raises(InvalidInput):
        storage.delete([key])
    with pytest.raises(InvalidInput):
        storage.local_path(key) if isinstance(storage, LocalStorage) else storage.size(key)


def test_a_signed_url_gives_the_file_to_anybody(s3: Settings, tmp_path: Path) -> None:
    """Signed for another host, method or path it is refused, and every download with it."""
    storage = open_storage(s3)
    storage.put_file(_file(tmp_path, b"the file"), "models/m/a b.txt")
    url = storage.signed_url("models/m/a b.txt", 60)
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"the file"
    assert open_storage(Settings(data_dir=tmp_path)).signed_url("models/m/a", 60) is None


@pytest.mark.parametrize("public", ["http://localhost:{port}", "http://localhost:{port}/"])
def test_a_signed_url_is_for_the_endpoint_that_callers_reach(s3: Settings, tmp_path: Path, public: str) -> None:
    """Guards callers outside a network of containers, who do not know its names; a host that is put into a URL behind
    its signature is refused by every store, though not by the one of this test."""
    port = urlsplit(str(s3.s3_endpoint)).port
    storage = open_storage(s3.model_copy(update={"s3_public_endpoint": public.format(port=port)}))
    storage.put_file(_file(tmp_path, b"the file"), "models/m/a b.txt")
    url = storage.signed_url("models/m/a b.txt", 60)
    assert url is not None
    assert url.startswith(f"http://localhost:{port}/bucket/some/prefix/models/m/a%20b.txt?")
    unsigned, _, signature = url.partition("&X-Amz-Signature=")
    assert signature == _signature(unsigned)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"the file"


def _signature(unsigned: str) -> str:
    """What botocore makes of a URL that is complete but for it."""
    request = AWSRequest("GET", unsigned)
    request.context["timestamp"] = parse_qs(urlsplit(unsigned).query)["X-Amz-Date"][0]
    signer = S3SigV4QueryAuth(Credentials("id", "secret"), "s3", "us-east-1")
    signature: str = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    return signature


def test_a_bucket_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """Not a failed job: it is worth trying again."""
    away = Settings(
        storage_url="s3://bucket",
        s3_endpoint=f"http://127.0.0.1:{free_port()}",
        s3_access_key_id="id",
        s3_secret_access_key="secret",
    )
    with pytest.raises(Unavailable, match="does not answer"):
        open_storage(away).size("models/m/a")


def test_a_bucket_that_is_not_there_is_no_missing_file(s3: Settings, tmp_path: Path) -> None:
    """A wrong name in the settings would look as if every model had been deleted, on a server that is ready."""
    open_storage(s3).ping()
    wrong = open_storage(s3.model_copy(update={"storage_url": "s3://another"}))
    with pytest.raises(Unavailable, match="no bucket"):
        wrong.put_file(_file(tmp_path, b"abc"), "models/m/a")
    with pytest.raises(Unavailable):
        wrong.ping()


def test_a_folder_that_went_with_its_mount_does_not_answer(tmp_path: Path) -> None:
    """Guards against a server that is ready for uploads into the empty folder below a mount that has gone."""
    storage, reader = LocalStorage(tmp_path / "storage"), LocalStorage(tmp_path / "storage", read_only=True)
    storage.ping()
    shutil.rmtree(tmp_path / "storage")
    for one in (storage, reader):
        with pytest.raises(Unavailable, match="gone"):
            one.ping()
    (tmp_path / "storage").mkdir()
    with pytest.raises(Unavailable, match="another one lies in its place"):
        storage.ping()
    reader.ping()


@pytest.mark.parametrize("move", [False, True])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, full_disk: Path, move: bool) -> None:
    """Half a file under its final name would be served as a model."""
    storage = LocalStorage(full_disk / "storage")
    source = _file(tmp_path, os.urandom(3 * MB))
    with pytest.raises(StorageFull, match="no room"):
        storage.put_file(source, "models/m/a", move=move)
    assert source.exists(), "what could not be stored is still where it was"
    assert list(storage.list()) == []
    assert list((full_disk / "storage" / ".aside").iterdir()) == []
    small = LocalStorage(tmp_path / "storage")
    small.put_file(source, "models/m/a")
    with pytest.raises(StorageFull):
        small.get_file("models/m/a", full_disk / "copy")
    assert not list(full_disk.glob("copy*"))


def test_moving_renames_and_makes_the_object_new(tmp_path: Path) -> None:
    """An unpacked archive keeps its files' old times; the sweep of orphans would take them before they have a row."""
    storage = LocalStorage(tmp_path / "storage")
    source = _file(tmp_path, b"abc")
    os.utime(source, (0, 0))
    number = source.stat().st_ino
    storage.put_file(source, "models/m/a", move=True)
    path = storage.local_path("models/m/a")
    assert path is not None
    assert path.stat().st_ino == number
    assert path.stat().st_mtime > 1e9


def test_putting_and_deleting_at_once_loses_nothing(tmp_path: Path) -> None:
    """A delete removes empty folders, and a put may be about to use one."""
    storage = LocalStorage(tmp_path / "storage")
    source = _file(tmp_path, b"abc")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            storage.put_file(source, "jobs/1/a/b")
            storage.delete(["jobs/1/a/b"])

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for index in range(100):
            storage.put_file(source, f"jobs/1/{index % 3}/c")
            assert storage.size(f"jobs/1/{index % 3}/c") == 3
            storage.delete([f"jobs/1/{index % 3}/c"])
    finally:
        stop.set()
        thread.join()


def test_what_a_cut_off_write_left_is_discarded(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    left = tmp_path / "storage" / ".aside" / "left"
    left.write_bytes(b"12345")
    assert storage.discard_unfinished(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert list(storage.list()) == []
    assert storage.discard_unfinished(datetime.now(UTC) + timedelta(hours=1)) == 5
    assert not left.exists()


def test_what_a_backup_that_was_killed_holds_is_discarded(tmp_path: Path) -> None:
    """Guards a disk: what it has linked stays on it when jobs delete theirs."""
    storage = LocalStorage(tmp_path / "storage")
    (tmp_path / "object").write_bytes(b"123")
    storage.put_file(tmp_path / "object", "jobs/1/a")
    left = tmp_path / "storage" / ".aside" / "left"
    (left / "jobs/1").mkdir(parents=True)
    (left / "alone").write_bytes(b"12345")
    (left / "jobs/1/a").hardlink_to(tmp_path / "storage" / "jobs/1/a")
    with storage.unlisted() as held:
        assert storage.discard_unfinished(datetime.now(UTC) - timedelta(hours=1)) == 0
        assert left.exists()
        assert held.exists()
    assert storage.discard_unfinished(datetime.now(UTC) + timedelta(hours=1)) == 5
    assert not left.exists()
    assert storage.size("jobs/1/a") == 3


@pytest.mark.parametrize(
    "url",
    ["folder", "gs://bucket", "s3://", "file://relative", "file://data/storage", "file:///a#b", "s3://bucket/a?b"],
)
def test_an_address_of_no_storage_is_refused(url: str) -> None:
    """Of two slashes the next part is a host: what was meant for data/storage would go to /storage."""
    with pytest.raises(InvalidInput, match="LIMBECK_STORAGE_URL"):
        open_storage(Settings(storage_url=url))


def test_a_secret_in_the_address_of_a_storage_is_not_shown() -> None:
    with pytest.raises(InvalidInput) as refused:
        open_storage(Settings(storage_url="s3://key:secret@bucket"))
    assert "secret" not in refused.value.message
