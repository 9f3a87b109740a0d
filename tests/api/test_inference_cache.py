"""The students that an API process keeps loaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from api.inference import Students
from api.inference.files import LocalFiles
from limbeck.errors import Conflict, InvalidInput, NotFound, Unavailable
from limbeck.formats import Format
from limbeck.runtime import Predictor
from limbeck.runtime.providers import installed
from models.settings import Settings
from models.storage.local import LocalStorage
from tests.api.test_batcher_tasks import student_of
from tests.exported import texts


@dataclass(frozen=True)
class StoredFile:
    path: str
    key: str
    bytes: int
    sha256: str


class Bucket(LocalStorage):
    """A storage that is not on this machine: slow enough for callers to meet, and it counts what is fetched."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: Counter[str] = Counter()
        self.away = False

    def local_path(self, key: str) -> Path | None:
        return None

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError as error:
            raise NotFound(f"The storage has no {key!r}.") from error

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if self.away:
            raise Unavailable("The storage is away.")
        self.fetched[key] += 1
        time.sleep(0.02)
        return super().open(key, start, end)


def stored(storage: LocalStorage, folder: Path, model_id: str) -> list[StoredFile]:
    """Put a student into the storage, as the worker does."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        done = storage.put_file(path, f"models/{model_id}/{name}")
        files.append(StoredFile(name, done.key, done.bytes, done.sha256))
    return files


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "bucket")


def students(storage: LocalStorage, tmp_path: Path, memory: int = 1024**3, disk: int = 1024**3) -> Students:
    settings = Settings(data_dir=tmp_path / "data", predict_memory_bytes=memory, predict_cache_bytes=disk)
    return Students(storage, settings)


def damage(storage: LocalStorage, key: str) -> None:
    path = storage._path(key)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def cached(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "data/scratch/students").iterdir())


def test_a_student_that_many_ask_for_is_loaded_once(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against eight copies in memory, and eight downloads, when eight requests meet a cold student."""
    files, loaded = stored(bucket, exported_student, "mdl_a"), students(bucket, tmp_path)
    start = threading.Barrier(8)

    def ask(text: str) -> tuple[object, object]:
        start.wait()
        student = loaded.get("mdl_a", files)
        return student, student.predict(text)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, texts(8)))
    assert len({id(student) for student, _ in answers}) == 1
    assert set(bucket.fetched.values()) == {1}
    assert [answer for _, answer in answers] == [loaded.get("mdl_a", files).predict(text) for text in texts(8)]


class Counting(Bucket):
    """A bucket that knows how many students are fetched from it at the same time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.now: Counter[str] = Counter()
        self.most = 0

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        model = key.split("/")[1]
        self.now[model] += 1
        self.most = max(self.most, len(+self.now))
        time.sleep(0.2)
        self.now[model] -= 1
        return super().open(key, start, end)


@pytest.mark.parametrize(("memory", "most"), [(1, 1), (1024**3, 4)])
def test_students_that_do_not_fit_beside_each_other_are_loaded_in_turns(
    exported_student: Path, tmp_path: Path, memory: int, most: int
) -> None:
    """Guards a process that starts under load, with many students behind it: what is loaded takes its memory also when
    it has been dropped already for the next, and forty at a time would be forty times the limit."""
    bucket = Counting(tmp_path / "bucket")
    loaded = students(bucket, tmp_path, memory=memory)
    names = [f"mdl_{number}" for number in range(4)]
    files = {name: stored(bucket, exported_student, name) for name in names}
    for name in names:  # each with bytes of its own, or the second would find what the first has fetched
        config = next(file for file in files[name] if file.path == "config.json")
        path = bucket._path(config.key)
        path.write_bytes(path.read_bytes() + b"\n" * names.index(name))
        own = replace(config, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        files[name] = [own if file is config else file for file in files[name]]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: loaded.get(name, files[name]).predict("a text"), names))
    assert all(answer == answers[0] for answer in answers)
    assert bucket.most == most


def test_only_what_answers_is_fetched(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against the weights for torch being downloaded before the first answer."""
    files = stored(bucket, exported_student, "mdl_a")
    students(bucket, tmp_path).get("mdl_a", files, "onnx-int8")
    names = {key.removeprefix("models/mdl_a/") for key in bucket.fetched}
    assert names == {"config.json", "limbeck.json", "onnx/model_int8.onnx", "tokenizer.json"}
    assert all(len(path.name) == 64 for path in cached(tmp_path)), "nothing but files under their sha256 is left"


def test_the_forms_of_a_student_are_apart(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against the key of the cache leaving out the form."""
    files, loaded = stored(bucket, exported_student, "mdl_a"), students(bucket, tmp_path)
    assert loaded.get("mdl_a", files).format == "onnx"
    assert loaded.get("mdl_a", files, "onnx-int8").format == "onnx-int8"
    assert [(one.model_id, one.format) for one in loaded.loaded] == [("mdl_a", "onnx"), ("mdl_a", "onnx-int8")]
    loaded.forget("mdl_a")
    assert loaded.loaded == ()


@pytest.mark.parametrize(
    ("setting", "threads"), [(None, {"onnx": None, "onnx-int8": 1}), (3, {"onnx": 3, "onnx-int8": 3})]
)
def test_a_call_in_eight_bits_is_computed_by_one_thread(
    bucket: Bucket,
    exported_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: int | None,
    threads: dict[Format, int | None],
) -> None:
    """Guards against cores that wait for each other within one call, and a setting that nobody reads."""
    seen: dict[Format, int | None] = {}
    load = Predictor.load

    def watched(folder: Path, *, format: Format, threads: int | None, **rest: Any) -> Predictor:
        seen[format] = threads
        return load(folder, format=format, threads=threads, **rest)

    monkeypatch.setattr(Predictor, "load", watched)
    files = stored(bucket, exported_student, "mdl_a")
    loaded = Students(bucket, Settings(data_dir=tmp_path / "data", predict_call_threads=setting))
    for form in threads:
        loaded.get("mdl_a", files, form)
    assert seen == threads


def test_the_least_recently_asked_goes_first(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against memory that grows with every student, and against the hot one being dropped."""
    files = {name: stored(bucket, exported_student, name) for name in ("mdl_a", "mdl_b", "mdl_c")}
    probe = students(bucket, tmp_path)
    probe.get("mdl_a", files["mdl_a"])
    limit = int(2.5 * loaded_bytes(probe))
    loaded = students(bucket, tmp_path, memory=limit)
    first = loaded.get("mdl_a", files["mdl_a"])
    second = loaded.get("mdl_b", files["mdl_b"])
    assert loaded.get("mdl_a", files["mdl_a"]) is first
    loaded.get("mdl_c", files["mdl_c"])
    assert [one.model_id for one in loaded.loaded] == ["mdl_a", "mdl_c"]
    assert loaded.get("mdl_a", files["mdl_a"]) is first
    assert second.predict("a text"), "whoever still holds it gets an answer"
    assert loaded.get("mdl_b", files["mdl_b"]) is not second
    assert loaded_bytes(loaded) <= limit


def loaded_bytes(loaded: Students) -> int:
    return sum(one.bytes for one in loaded.loaded)


def test_tokenizers_that_cut_contexts_are_counted(bucket: Bucket, tmp_path: Path) -> None:
    """Guards the limit: a student that answers questions has three tokenizers in memory, and makes them once."""
    student_of("question_answering", tmp_path / "student")
    files, loaded = stored(bucket, tmp_path / "student", "mdl_a"), students(bucket, tmp_path)
    student = loaded.get("mdl_a", files)
    assert student.tokenizers == 3
    (tokenizer,) = [file.bytes for file in files if file.path == "tokenizer.json"]
    assert loaded_bytes(loaded) > 3 * 10 * tokenizer
    assert student._encoder.windows is student._encoder.windows


def test_one_that_is_too_large_is_loaded_alone(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against a student that can never answer, or an endless loop over an empty cache."""
    files, loaded = stored(bucket, exported_student, "mdl_a"), students(bucket, tmp_path, memory=1)
    assert loaded.get("mdl_a", files) is loaded.get("mdl_a", files)
    loaded.get("mdl_b", stored(bucket, exported_student, "mdl_b"))
    assert [one.model_id for one in loaded.loaded] == ["mdl_b"]


def test_a_damaged_file_is_refused_and_tried_again_some_seconds_later(
    bucket: Bucket, exported_student: Path, tmp_path: Path
) -> None:
    """Guards against a flipped bit that answers with other labels, against a failure that stays for ever, and against
    requests that each fetch and hash what is damaged."""
    now = [100.0]
    settings = Settings(data_dir=tmp_path / "data")
    files, loaded = stored(bucket, exported_student, "mdl_a"), Students(bucket, settings, clock=lambda: now[0])
    damage(bucket, "models/mdl_a/onnx/model.onnx")
    for _ in range(3):
        with pytest.raises(Unavailable, match="mdl_a cannot be loaded here: The stored file models/mdl_a/onnx/model"):
            loaded.get("mdl_a", files)
    assert bucket.fetched["models/mdl_a/onnx/model.onnx"] == 1
    assert loaded.loaded == ()
    stored(bucket, exported_student, "mdl_a")
    now[0] += 6
    assert loaded.get("mdl_a", files).predict("a text")


def test_a_file_that_was_damaged_on_this_machine_is_fetched_again(
    bucket: Bucket, exported_student: Path, tmp_path: Path
) -> None:
    """Guards against trusting a cached file for its name."""
    files = stored(bucket, exported_student, "mdl_a")
    students(bucket, tmp_path).get("mdl_a", files)
    for path in cached(tmp_path):
        path.write_bytes(b"something else")
    assert students(bucket, tmp_path).get("mdl_a", files).predict("a text")
    assert set(bucket.fetched.values()) == {2}


def test_fetched_files_outlive_the_process_and_stay_in_their_limit(
    bucket: Bucket, exported_student: Path, tmp_path: Path
) -> None:
    """Guards against a download at every restart, and against a disk that fills."""
    files = stored(bucket, exported_student, "mdl_a")
    students(bucket, tmp_path).get("mdl_a", files)
    students(bucket, tmp_path).get("mdl_a", files)
    assert set(bucket.fetched.values()) == {1}
    students(bucket, tmp_path, disk=1).get("mdl_a", files, "onnx-int8")
    graphs = {file.path: file.sha256 for file in files}
    names = {path.name for path in cached(tmp_path)}
    assert graphs["onnx/model_int8.onnx"] in names
    assert graphs["onnx/model.onnx"] not in names


def test_a_local_storage_is_read_where_it_is(exported_student: Path, tmp_path: Path) -> None:
    """Guards against every student lying on the disk twice, and against its damage going unseen."""
    storage = LocalStorage(tmp_path / "storage")
    files, loaded = stored(storage, exported_student, "mdl_a"), students(storage, tmp_path)
    assert loaded.get("mdl_a", files).predict("a text")
    assert cached(tmp_path) == []
    damage(storage, "models/mdl_a/onnx/model.onnx")
    with pytest.raises(Unavailable, match="is not what was stored"):
        students(storage, tmp_path).get("mdl_a", files)


def test_a_file_that_is_gone_does_not_deny_the_student(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against a 404 for a model that the database has: its callers would take it for deleted."""
    files, loaded = stored(bucket, exported_student, "mdl_a"), students(bucket, tmp_path)
    bucket.delete(["models/mdl_a/onnx/model.onnx"])
    with pytest.raises(Unavailable, match="mdl_a cannot be loaded here"):
        loaded.get("mdl_a", files)


def test_waiters_hear_of_a_failure(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against requests that wait for ever for a student whose loading failed."""
    files, loaded = stored(bucket, exported_student, "mdl_a"), students(bucket, tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    done = bucket.put_file(broken, "models/mdl_x/model.onnx")
    files = [replace(f, key=done.key, sha256=done.sha256) if f.path == "onnx/model.onnx" else f for f in files]
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(loaded.get, "mdl_x", files) for _ in range(4)]
        errors = [type(one.exception(timeout=30)) for one in waiting]
    assert errors == [Unavailable] * 4
    bucket.away = True
    with pytest.raises(Unavailable):
        students(bucket, tmp_path / "elsewhere").get("mdl_a", files)


def test_loads_that_come_and_go_do_not_fail_each_other(tmp_path: Path) -> None:
    """Guards against the folder of another load, or a file that it evicts, going between being listed and being looked
    at: everybody who waited for the student got an internal error."""
    bucket, contents = Bucket(tmp_path / "bucket"), [tmp_path / f"{number}" for number in range(8)]
    for number, content in enumerate(contents):
        content.write_bytes(bytes([number]) * 1000)
    done = [bucket.put_file(content, f"models/{content.name}") for content in contents]
    facts = [StoredFile("config.json", one.key, one.bytes, one.sha256) for one in done]
    found = LocalFiles(bucket, tmp_path / "fetched", limit=1000)
    until = time.monotonic() + 1.5

    def load(number: int) -> int:
        loads = 0
        while time.monotonic() < until:
            with found.laid_out([facts[number]]):
                loads += 1
        return loads

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(8)))


def test_what_cannot_answer_is_named(bucket: Bucket, exported_pair_student: Path, tmp_path: Path) -> None:
    """Guards against a teacher, which has no exported form, ending as an internal error."""
    files, loaded = stored(bucket, exported_pair_student, "mdl_a"), students(bucket, tmp_path)
    with pytest.raises(Conflict, match="has no form onnx-int8; it has: onnx"):
        loaded.get("mdl_a", files, "onnx-int8")
    for missing in ("onnx/model.onnx", "limbeck.json"):
        with pytest.raises(Conflict, match="cannot answer"):
            loaded.get("mdl_a", [file for file in files if file.path != missing])
    assert bucket.fetched == {}


def test_it_needs_no_web_server() -> None:
    """Guards against the loaded students growing into the API: `limbeck serve` will run them without it."""
    script = (
        "import sys, api.inference; print(sorted({'fastapi', 'starlette', 'torch', 'sqlalchemy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_stand_in_for_a_bucket_hashes_as_the_real_one(bucket: Bucket, tmp_path: Path) -> None:
    """Guards against these tests comparing nothing."""
    (tmp_path / "file").write_bytes(b"content")
    assert bucket.put_file(tmp_path / "file", "a/b").sha256 == hashlib.sha256(b"content").hexdigest()


def test_one_caller_alone_looks_a_name_up_again(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against all requests of a busy student asking the database in the moment in which its name grows old, and
    against a name that nobody could look up being trusted for ever."""
    now = [100.0]
    settings = Settings(data_dir=tmp_path / "data")
    loaded = Students(bucket, settings, clock=lambda: now[0])
    student = loaded.get("mdl_a", stored(bucket, exported_student, "mdl_a"))
    loaded.know("reviews", "mdl_a", student, loaded.generation)
    assert loaded.at_hand("reviews") is student
    now[0] += 1.5
    assert [loaded.at_hand("reviews") for _ in range(3)] == [None, student, student]
    now[0] += 1
    assert [loaded.at_hand("reviews") for _ in range(2)] == [None, None]
    loaded.know("reviews", "mdl_a", student, loaded.generation)
    assert loaded.at_hand("reviews") is student


def test_an_old_meaning_does_not_come_back(bucket: Bucket, exported_student: Path, tmp_path: Path) -> None:
    """Guards against an alias that was switched, and means the old student again: to a look-up that began before."""
    loaded = Students(bucket, Settings(data_dir=tmp_path / "data"))
    student = loaded.get("mdl_old", stored(bucket, exported_student, "mdl_old"))
    before = loaded.generation
    loaded.forget_name("prod")
    loaded.know("prod", "mdl_old", student, before)
    assert loaded.at_hand("prod") is None
    loaded.know("prod", "mdl_old", student, loaded.generation)
    loaded.forget_name("prod")
    assert (loaded.at_hand("prod"), loaded.knows("prod")) == (None, True)


def test_a_provider_that_is_not_there_is_told_before_anybody_asks(bucket: Bucket, tmp_path: Path) -> None:
    """Guards against a server that starts, and answers every question with the same error."""
    missing = next(name for name in ("openvino", "cuda") if name not in installed())
    with pytest.raises(InvalidInput, match=f"{missing} is not in this ONNX Runtime"):
        Students(bucket, Settings(data_dir=tmp_path / "data", predict_providers=(missing,)))
