"""``limbeck serve``: real processes on real sockets, against the API's database and storage, or a folder alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from api.deps import Services
from api.serve.folder import FolderShelf
from api.shelves import DatabaseShelf
from limbeck.cli.local_server import free_port
from limbeck.errors import InvalidInput, NotFound, Unavailable
from limbeck.runtime.providers import installed
from models.db import Database
from models.settings import Settings
from tests.api.conftest import add_model
from tests.api.replicas import ROOT, Askers, Replica, replica, until
from tests.exported import LABELS


def renamed(student: Path, folder: Path, prefix: str) -> Path:
    """A copy whose labels tell it from the others."""
    shutil.copytree(student, folder)
    described = json.loads((folder / "limbeck.json").read_text())
    described["labels"] = [f"{prefix}{label}" for label in described["labels"]]
    (folder / "limbeck.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def old_and_new(house: Services, exported_student: Path, tmp_path: Path) -> tuple[str, str]:
    """Two students in the API's database and storage."""
    found = []
    for name in ("old", "new"):
        folder = renamed(exported_student, tmp_path / name, f"{name} ")
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        found.append(add_model(house, files, labels=list(LABELS)))
    return found[0], found[1]


@pytest.fixture
def two(house: Services, settings: Settings, tmp_path: Path) -> Iterator[list[Replica]]:
    """Two replicas over the API's database and storage, each with a scratch folder of its own."""
    environment = {"LIMBECK_DATA_DIR": str(settings.data_dir), "LIMBECK_SERVE_DRAIN_SECONDS": "1"}
    with (
        replica(environment | {"LIMBECK_SCRATCH_DIR": str(tmp_path / "a")}, tmp_path / "a.log") as first,
        replica(environment | {"LIMBECK_SCRATCH_DIR": str(tmp_path / "b")}, tmp_path / "b.log") as second,
    ):
        yield [first, second]


def test_an_alias_is_switched_under_load_without_a_failed_request(
    client: TestClient, old_and_new: tuple[str, str], two: list[Replica]
) -> None:
    """Guards against replicas that answer 404 or 503, or never follow, when the API switches a name."""
    old, new = old_and_new
    assert client.put("/v1/aliases/reviews", json={"model": old}).status_code == 200
    with Askers(two, "/v1/models/reviews/predict").asking() as askers:
        until(lambda: all(askers.answered.values()))
        assert all(label.startswith("old ") for labels in askers.answered.values() for label in labels)
        assert client.put("/v1/aliases/reviews", json={"model": new}).status_code == 200
        until(lambda: all(labels[-1].startswith("new ") for labels in askers.answered.values()))
        counts = [len(labels) for labels in askers.answered.values()]
        until(lambda: all(len(now) > then + 12 for now, then in zip(askers.answered.values(), counts, strict=True)))
    assert askers.failed == []
    for labels in askers.answered.values():
        switch = next(place for place, label in enumerate(labels) if label.startswith("new "))
        # The clients' answers are noted in no strict order; beyond those in flight nobody falls back.
        assert not any(label.startswith("old ") for label in labels[switch + 8 :])


def test_a_replica_that_is_told_to_end_costs_nobody_a_request(
    client: TestClient, old_and_new: tuple[str, str], two: list[Replica]
) -> None:
    """Guards against connections that are closed with a request on its way, at every rollout."""
    client.put("/v1/aliases/reviews", json={"model": old_and_new[0]})
    leaving, staying = two
    with Askers(two, "/v1/models/reviews/predict").asking() as askers:
        until(lambda: all(len(labels) > 5 for labels in askers.answered.values()))
        leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(30) == 0
        count = len(askers.answered[staying.url])
        until(lambda: len(askers.answered[staying.url]) > count + 5)
    assert askers.failed == []
    assert "Traceback" not in leaving.log.read_text()


def test_it_has_what_asking_needs_and_nothing_else(old_and_new: tuple[str, str], two: list[Replica]) -> None:
    """Guards against a replica that takes jobs, or that loads torch or a queue on the way."""
    with httpx.Client(base_url=two[0].url, timeout=60) as http:
        assert http.post(f"/v1/models/{old_and_new[0]}/inference", json={"inputs": "x"}).json()[0][0]["label"]
        assert http.get(f"/v2/models/{old_and_new[0]}/ready").status_code == 200
        assert http.get("/v2/health/ready").json() == {"ready": True}
        assert "limbeck_students_loaded 1.0" in http.get("/metrics").text
        paths = http.get("/openapi.json").json()["paths"]
        assert not [path for path in paths if path.startswith(("/v1/jobs", "/v1/datasets", "/v1/aliases"))]
        assert http.post("/v1/jobs", json={}).status_code == 404
    maps = Path(f"/proc/{two[0].process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "/torch/" not in maps


def test_what_is_known_answers_while_the_database_is_away(house: Services, old_and_new: tuple[str, str]) -> None:
    """Guards against an outage of the database that becomes one of every student that is loaded."""
    shelf = DatabaseShelf(house.database)
    found = shelf.find(old_and_new[0])
    house.database.dispose()
    for file in Path(house.settings.data_dir).glob("limbeck.db*"):
        file.unlink()
    os.mkfifo(Path(house.settings.data_dir, "limbeck.db"))  # what no SQLite can open
    assert shelf.find(old_and_new[0]) == found
    with pytest.raises(Unavailable):
        shelf.find(old_and_new[1])


class _Dropping(Database):
    """A database that can go away."""

    asked = 0
    away = False

    @contextmanager
    def reading(self) -> Iterator[Session]:
        self.asked += 1
        if self.away:
            raise Unavailable("The database is away.")
        with super().reading() as session:
            yield session


def test_a_database_that_is_away_is_not_asked_for_each_request(house: Services, old_and_new: tuple[str, str]) -> None:
    """Guards against a database whose host drops packets: each request would wait 5 s for it, on one of 40 threads."""
    now = [100.0]
    database = _Dropping(house.settings)
    shelf = DatabaseShelf(database, clock=lambda: now[0])
    found = shelf.find(old_and_new[0])
    database.away = True
    assert [shelf.find(old_and_new[0]) for _ in range(3)] == [found] * 3
    assert database.asked == 2
    with pytest.raises(Unavailable):
        shelf.find(old_and_new[1])
    assert database.asked == 3
    database.away = False
    for later, asked in ((4.9, 3), (0.2, 4)):
        now[0] += later
        assert (shelf.find(old_and_new[0]), database.asked) == (found, asked)
    database.dispose()


def test_a_folder_is_served_by_several_processes_without_a_database(exported_student: Path, tmp_path: Path) -> None:
    """Guards the command as typed: one port for all, a failure told by name, and no process and no folder left."""
    shutil.copytree(exported_student, tmp_path / "students" / "reviews")
    port = free_port()
    command = [str(Path(sys.executable).parent / "limbeck"), "serve", "--workers", "2", "--port", str(port)]
    command += ["--local", "students"]
    environment = {**os.environ, "LIMBECK_SERVE_DRAIN_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: process.poll() is not None or b"is ready" in log.read_bytes(), log)
        url = f"http://127.0.0.1:{port}"
        answer = httpx.post(f"{url}/v1/models/reviews/predict", json={"inputs": "x"}, timeout=60)
        assert answer.status_code == 200, log.read_text()
        unknown = httpx.post(f"{url}/v1/models/nope/predict", json={"inputs": "x"}, timeout=60)
        assert "it has: reviews" in unknown.json()["detail"]
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) == 2
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    assert not any(one.is_running() for one in below)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "students"]


def test_a_student_that_is_replaced_in_its_folder_answers_anew(exported_student: Path, tmp_path: Path) -> None:
    """Guards against a name that goes on meaning what was loaded first."""
    for name in ("old", "new"):
        renamed(exported_student, tmp_path / "students" / name, f"{name} ")
    link = tmp_path / "students" / "reviews"
    link.symlink_to("old")
    with replica({"LIMBECK_SERVE_FOLDER": str(tmp_path / "students")}, tmp_path / "log") as one:

        def label() -> str:
            answer = httpx.post(f"{one.url}/v1/models/reviews/predict", json={"inputs": "x"}, timeout=60)
            assert answer.status_code == 200, answer.text
            return str(answer.json()[0]["label"])

        assert label().startswith("old ")
        aside = tmp_path / "aside"
        aside.symlink_to("new")
        aside.rename(link)
        until(lambda: label().startswith("new "))


@pytest.mark.parametrize("alone", [True, False])
def test_a_folder_that_is_a_link_is_followed_each_time(alone: bool, exported_student: Path, tmp_path: Path) -> None:
    """Guards against a new release behind the same link that is never served, while all looks well."""
    for name in ("old", "new"):
        renamed(exported_student, tmp_path / name if alone else tmp_path / name / "current", f"{name} ")
    link, aside = tmp_path / "current", tmp_path / "aside"
    link.symlink_to("old")
    shelf = FolderShelf(link)
    assert shelf.names() == ["current"]
    before, _ = shelf.find("current")
    aside.symlink_to("new")
    aside.rename(link)
    after, files = shelf.find("current")
    assert after != before
    (described,) = (one for one in files if one.path == "limbeck.json")
    assert b"new " in b"".join(shelf.storage.open(described.key))


def test_names_in_a_folder(exported_student: Path, tmp_path: Path) -> None:
    """Guards against a folder that serves what is not in it, and one that serves nothing and says nothing."""
    assert FolderShelf(exported_student).names() == [exported_student.name]
    with pytest.raises(NotFound, match="it has: single"):
        FolderShelf(exported_student).find("..")
    with pytest.raises(InvalidInput, match=r"no limbeck\.json"):
        FolderShelf(tmp_path)


@pytest.mark.parametrize("alone", [True, False])
def test_students_without_a_graph_are_told_at_the_start(alone: bool, exported_student: Path, tmp_path: Path) -> None:
    """Guards against a server that is ready, and answers each question with 409: safetensors are what one downloads."""
    folder = renamed(exported_student, tmp_path / "all" / "student", "")
    shutil.rmtree(folder / "onnx")
    with pytest.raises(InvalidInput, match="has an ONNX file to answer with; `limbeck download --format onnx`"):
        FolderShelf(folder if alone else folder.parent)


def test_it_does_not_start_on_nothing(tmp_path: Path) -> None:
    """Guards against an empty database that is made by asking for it, and a server that knows no student for ever."""
    environment = {**os.environ, "LIMBECK_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "api.serve", "--port", "0"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "--local" in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("more", [[], ["--check"]], ids=["started", "checked"])
def test_it_does_not_start_without_the_provider_that_was_named(
    more: list[str], exported_student: Path, tmp_path: Path
) -> None:
    """Guards against several processes that are checked, started, end with a traceback, and are started again."""
    missing = next(name for name in ("openvino", "cuda") if name not in installed())
    environment = {**os.environ, "LIMBECK_SERVE_FOLDER": str(exported_student), "LIMBECK_PREDICT_PROVIDERS": missing}
    command = [sys.executable, "-m", "api.serve", "--port", "0", *more]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert f"LIMBECK_PREDICT_PROVIDERS cannot be used: {missing} is not in this ONNX Runtime" in done.stderr
