"""The client against a scripted network: what it sends, what it repeats, and what errors become."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from limbeck import errors
from limbeck.client import Client
from limbeck.config import DistillConfig
from limbeck.methods.kd import KnowledgeDistillation

Answer = httpx.Response | Exception
JOB: dict[str, Any] = {
    "id": "job_1",
    "object": "job",
    "name": "demo",
    "status": "queued",
    "created_at": "2026-01-01T00:00:00Z",
    "config": {"teacher": {"source": "builtin:minilm-l6"}},
}
CONFIG = {"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings", "method": "kd"}


class Script(httpx.BaseTransport):
    """Gives the answers in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)


class Broken(httpx.SyncByteStream):
    """A body that breaks off after some bytes."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self.body
        raise httpx.ReadError("connection reset by peer")


def client(*answers: Answer | Callable[[httpx.Request], httpx.Response], retries: int = 2) -> tuple[Client, Script]:
    script = Script(*answers)
    return Client("http://limbeck.test", transport=script, retries=retries, backoff=0), script


def job(status: str = "queued", **more: Any) -> httpx.Response:
    return httpx.Response(200, json=JOB | {"status": status} | more)


def problem(status: int, code: str, **more: Any) -> httpx.Response:
    return httpx.Response(status, json={"title": "No", "detail": "It cannot be.", "code": code} | more)


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_an_absent_server_is_one_sentence_that_says_what_to_do() -> None:
    """Guards against a connection error's traceback as the first thing a newcomer sees."""
    limbeck, _ = client(httpx.ConnectError("refused"), retries=0)
    with pytest.raises(errors.Unavailable, match=r"No Limbeck server answers at http://limbeck.test.*`limbeck up`"):
        limbeck.job("job_1")
    assert limbeck.ready() is False


def test_a_wrong_url_is_wrong_input_and_is_not_tried_again() -> None:
    with pytest.raises(errors.InvalidInput, match="not the URL"):
        Client("localhost:8000").job("job_1")


def test_something_else_on_the_port_is_named() -> None:
    """Guards against a JSON decoding traceback when another program listens there."""
    limbeck, _ = client(httpx.Response(200, html="<html></html>"))
    with pytest.raises(errors.LimbeckError, match="Is it a Limbeck server"):
        limbeck.job("job_1")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (422, "invalid_config", errors.InvalidConfig),
        (422, "invalid_dataset", errors.InvalidDataset),
        (404, "not_found", errors.NotFound),
        (409, "conflict", errors.Conflict),
        (413, "too_large", errors.TooLarge),
        (503, "unavailable", errors.Unavailable),
        (422, "a_code_of_a_newer_server", errors.InvalidInput),
        (500, "internal_error", errors.LimbeckError),
    ],
)
def test_a_problem_becomes_the_exception_that_it_names(
    status: int, code: str, expected: type[errors.LimbeckError]
) -> None:
    found = [{"pointer": "/method/temperature", "detail": "has to be over 0"}]
    limbeck, _ = client(problem(status, code, errors=found), retries=0)
    with pytest.raises(errors.LimbeckError) as caught:
        limbeck.job("job_1")
    assert type(caught.value) is expected
    assert caught.value.problems == (errors.Problem("/method/temperature", "has to be over 0"),)


def test_a_repeated_submit_carries_one_key() -> None:
    """Guards against two jobs where the answer to the first request was lost."""
    limbeck, script = client(httpx.ReadError("gone"), httpx.Response(503), httpx.Response(202, json=JOB))
    assert limbeck.submit(CONFIG, name="demo").id == "job_1"
    keys = {request.headers["idempotency-key"] for request in script.requests}
    assert len(script.requests) == 3
    assert len(keys) == 1
    limbeck.submit(CONFIG)
    assert script.requests[-1].headers["idempotency-key"] not in keys


def test_a_repeated_rerun_carries_one_key() -> None:
    """Guards against two jobs where the answer to the first request was lost."""
    limbeck, script = client(httpx.ReadError("gone"), httpx.Response(202, json=JOB))
    limbeck.rerun("job_1")
    first, again = (request.headers["idempotency-key"] for request in script.requests)
    assert first == again
    limbeck.rerun("job_1")
    assert script.requests[-1].headers["idempotency-key"] != first


def test_a_long_retry_after_is_not_waited_for() -> None:
    """Guards against a submit that hangs for half a minute in front of a full queue."""
    limbeck, script = client(httpx.Response(429, headers={"retry-after": "30"}))
    with pytest.raises(errors.Unavailable):
        limbeck.submit(CONFIG)
    assert len(script.requests) == 1


def test_a_config_object_is_submitted_whole() -> None:
    """Guards against a method that loses its type because it is a default."""
    limbeck, script = client(httpx.Response(202, json=JOB))
    config = DistillConfig.parse(CONFIG | {"method": {"type": "kd", "temperature": 3.0}})
    limbeck.submit(config.model_copy(update={"method": KnowledgeDistillation(temperature=3.0)}), metadata={"run": "1"})
    body = json.loads(script.requests[0].content)
    assert body["metadata"] == {"run": "1"}
    assert DistillConfig.parse({key: body[key] for key in body if key != "metadata"}) == config


@pytest.mark.parametrize("call", ["delete", "upload"])
def test_what_must_not_happen_twice_is_not_repeated(call: str, tmp_path: Path) -> None:
    """Guards against a second upload after an answer that was lost."""
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    limbeck, script = client(httpx.ReadError("gone"))
    with pytest.raises(errors.Unavailable):
        limbeck.upload_dataset(tmp_path) if call == "upload" else getattr(limbeck, call)("job_1")
    assert len(script.requests) == 1


def test_events_are_all_that_there_are() -> None:
    """Guards against the first page given for the whole."""
    told = [{"sequence": number, "kind": "job.stage", "message": "m"} for number in (1, 2, 3)]
    pages = [{"data": told[:2], "has_more": True}, {"data": told[2:], "has_more": False}]
    limbeck, script = client(*(httpx.Response(200, json=page) for page in pages))
    assert [event.sequence for event in limbeck.events("job_1")] == [1, 2, 3]
    assert [request.url.params["after"] for request in script.requests] == ["0", "2"]


def test_watch_goes_on_behind_the_last_event_that_it_saw() -> None:
    """Guards against events lost or doubled where the stream breaks off, and against splitting at U+2028."""
    told = [{"sequence": number, "kind": "job.stage", "message": f"part\u2028{number}"} for number in (1, 2, 3)]
    frames = [f"id: {one['sequence']}\ndata: {json.dumps(one, ensure_ascii=False)}\n\n".encode() for one in told]
    progress = b'event: progress\ndata: {"status": "running"}\n\n'
    cut_off = Broken(b": still there\n\n" + progress + frames[0] + frames[1][:12])
    rest = httpx.Response(200, content=b"".join(frames[1:]))
    limbeck, script = client(
        httpx.Response(200, stream=cut_off), rest, job("succeeded"), httpx.Response(200, json={"data": []})
    )
    seen = list(limbeck.watch("job_1"))
    assert [event.sequence for event in seen] == [1, 2, 3]
    assert seen[0].message == "part\u20281"
    assert [request.headers.get("last-event-id") for request in script.requests[:2]] == ["0", "1"]


def test_watch_fetches_what_a_proxy_kept_back() -> None:
    """Guards against a job's last event going missing when its stream was ended early."""
    last = {"sequence": 1, "kind": "job.succeeded", "message": "Done."}
    pages = [httpx.Response(200, json={"data": data}) for data in ([last], [])]
    limbeck, _ = client(httpx.Response(200, content=b""), job("succeeded"), *pages)
    assert [event.kind for event in limbeck.watch("job_1")] == ["job.succeeded"]


def test_wait_ends_with_the_job_and_a_failed_job_has_no_student() -> None:
    """Guards against a failed job that looks like one that succeeded."""
    limbeck, _ = client(job("running"), job("failed", error={"code": "diverged", "message": "The loss became NaN."}))
    ended = limbeck.wait("job_1", poll_seconds=0)
    with pytest.raises(errors.JobFailed, match="The loss became NaN"):
        _ = ended.student_id


def test_wait_gives_up_in_time() -> None:
    limbeck, _ = client(job("running"))
    with pytest.raises(TimeoutError, match="still running"):
        limbeck.wait("job_1", poll_seconds=0.01, timeout=0.02)


def serve(content: bytes, seen: list[str | None], *, break_first_at: int) -> Callable[[httpx.Request], httpx.Response]:
    """A file server with Range and ETag whose first answer breaks off."""
    etag = f'"{hashlib.sha256(content).hexdigest()}"'

    def answer(request: httpx.Request) -> httpx.Response:
        span = request.headers.get("range")
        seen.append(span)
        headers = {"etag": etag}
        if len(seen) == 1:
            length = {"content-length": str(len(content))}
            return httpx.Response(200, headers=headers | length, stream=Broken(content[:break_first_at]))
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        if span and request.headers["if-range"] != etag:
            start = 0
        return httpx.Response(206 if start else 200, headers=headers, content=content[start:])

    return answer


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    """Guards against fetching gigabytes again, and against a file with a hole."""
    content, seen = os.urandom(50_000), list[str | None]()
    limbeck, _ = client(serve(content, seen, break_first_at=30_000))
    path = limbeck.download("mdl_1", tmp_path / "student.tar.gz")
    assert path.read_bytes() == content
    assert seen == [None, "bytes=30000-"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["student.tar.gz"]


def test_a_later_process_goes_on_with_the_same_version_only(tmp_path: Path) -> None:
    """Guards against the halves of two versions of a model being glued together."""
    old, new = os.urandom(1000), os.urandom(1000)
    part = tmp_path / f".student.tar.gz.{hashlib.sha256(old).hexdigest()}.part"
    part.write_bytes(old[:400])
    limbeck, _ = client(serve(new, [None], break_first_at=0))
    assert limbeck.download("mdl_1", tmp_path / "student.tar.gz").read_bytes() == new
    part.write_bytes(old[:400])
    seen: list[str | None] = [None]
    limbeck, _ = client(serve(old, seen, break_first_at=0))
    assert limbeck.download("mdl_1", tmp_path / "student.tar.gz").read_bytes() == old
    assert seen[1:] == ["bytes=400-"]


def test_a_download_that_is_not_what_was_hashed_is_refused(tmp_path: Path) -> None:
    """Guards against damaged weights that load and answer nonsense."""
    limbeck, _ = client(httpx.Response(200, headers={"etag": f'"{"0" * 64}"'}, content=b"damaged"))
    with pytest.raises(errors.InvalidArchive, match="sha256"):
        limbeck.download("mdl_1", tmp_path / "student.tar.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_download_into_a_folder_is_unpacked(tmp_path: Path) -> None:
    content = archive_of({"kd-minilm/config.json": b"{}", "kd-minilm/onnx/model.onnx": b"graph"})
    limbeck, script = client(serve(content, [None], break_first_at=0))
    folder = limbeck.download("mdl_1", tmp_path / "student", format="onnx")
    assert (folder / "onnx" / "model.onnx").read_bytes() == b"graph"
    assert script.requests[0].url.params["format"] == "onnx"
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]
    with pytest.raises(errors.InvalidInput, match="exists already"):
        limbeck.download("mdl_1", folder)


@pytest.mark.parametrize("target", [".", "../here"])
def test_an_empty_folder_is_filled_and_not_replaced(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards folders in which somebody stands, and those where a disk is mounted, which cannot be removed."""
    here = tmp_path / "here"
    here.mkdir()
    before = here.stat().st_ino
    monkeypatch.chdir(here)
    content = archive_of({"mdl_1/limbeck.json": b"{}", "mdl_1/onnx/model.onnx": b"graph"})
    limbeck, _ = client(serve(content, [None], break_first_at=0))
    limbeck.download("mdl_1", target, format="onnx")
    assert here.stat().st_ino == before
    assert (here / "onnx" / "model.onnx").read_bytes() == b"graph"
    assert [entry.name for entry in tmp_path.iterdir()] == ["here"]


def test_an_archive_that_climbs_out_is_refused(tmp_path: Path) -> None:
    """Guards against a hostile server that writes outside of the folder."""
    limbeck, _ = client(serve(archive_of({"../evil": b"x"}), [None], break_first_at=0))
    with pytest.raises(errors.InvalidArchive):
        limbeck.download("mdl_1", tmp_path / "student")
    assert not (tmp_path / "evil").exists()


DATASET = {"id": "ds_1", "name": "reviews", "created_at": "2026-01-01T00:00:00Z", "splits": {}}


def test_a_folder_of_splits_is_uploaded_under_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\n")
    (folder / "test.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    (folder / "notes.txt").write_text("not a split")
    limbeck, script = client(httpx.Response(201, json=DATASET))
    assert limbeck.upload_dataset(folder).reference == "dataset:ds_1"
    body = script.requests[0].content
    assert b'name="train"; filename="train.csv"' in body
    assert b'name="test"; filename="test.jsonl.gz"' in body
    assert b'name="name"\r\n\r\nreviews' in body
    assert b"notes" not in body


def test_a_data_set_without_train_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    limbeck, script = client(httpx.Response(201, json=DATASET))
    for source, message in (
        (tmp_path, "no train file"),
        (tmp_path / "gone.csv", "no file"),
        ({"dev": "x"}, "no split"),
    ):
        with pytest.raises(errors.InvalidDataset, match=message):
            limbeck.upload_dataset(source)
    assert script.requests == []


def test_a_model_folder_is_packed_without_its_pickles(tmp_path: Path) -> None:
    """Guards against uploads that the server has to refuse, or gigabytes of optimizer state."""
    for name in ("config.json", "model.safetensors", "vocab.txt", "optimizer.pt", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"x")
    row = {"id": "mdl_1", "name": "bert", "kind": "teacher", "created_at": "2026-01-01T00:00:00Z"}
    limbeck, script = client(httpx.Response(201, json=row))
    assert limbeck.upload_model(tmp_path, name="bert").reference == "model:mdl_1"
    body = script.requests[0].content
    packed = body[body.index(b"\x1f\x8b") : body.rindex(b"\r\n--")]
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert sorted(archive.getnames()) == ["config.json", "model.safetensors", "vocab.txt"]


def test_a_folder_of_the_hubs_cache_is_told_where_its_model_lies(tmp_path: Path) -> None:
    """Guards against "no model folder" of the one folder that ``huggingface-cli download`` left."""
    inner = tmp_path / "snapshots" / "0123"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    limbeck, _ = client(httpx.Response(201))
    with pytest.raises(errors.InvalidModel, match=f"no config.json. It is one of the hub's cache.*{inner}"):
        limbeck.upload_model(tmp_path)


def test_a_model_folder_of_pickles_alone_is_refused_at_home(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    limbeck, script = client(httpx.Response(201))
    with pytest.raises(errors.InvalidModel, match="safetensors"):
        limbeck.upload_model(tmp_path)
    assert script.requests == []


def test_predict_sends_what_it_was_given() -> None:
    limbeck, script = client(httpx.Response(200, json=[{"label": "a", "score": 0.9}]))
    assert limbeck.predict("mdl_1", "some text", top_k=1) == [{"label": "a", "score": 0.9}]
    assert json.loads(script.requests[0].content) == {"inputs": "some text", "parameters": {"top_k": 1}}
