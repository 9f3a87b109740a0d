"""The hub's client against a cache in its own layout, and against a hub that refuses or is away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from limbeck.data.hub import _table
from limbeck.data.hub_tabs import HubTabs
from limbeck.data.tab_quotes import TabQuotes
from tests.images import write_digits
from tests.tiny import docstrings, write_tiny_bert

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert", layers=3, labels=["gui", "networking"])


def _cached(home: Path, kind: str, name: str) -> Path:
    """A repository as the hub's client keeps it: refs name a commit, snapshots lie by commit."""
    root = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(SHA)
    snapshot = root / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    return snapshot


def _offline(home: Path, code: str) -> str:
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip().splitlines()[-1]


def test_a_hub_name_gives_the_folder_and_records_the_commit(tiny: Path, tmp_path: Path) -> None:
    snapshot = _cached(tmp_path, "models", "someone/tiny-bert")
    for file in tiny.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    found = _offline(
        tmp_path,
        "from limbeck.sources import *; from limbeck.config import Teacher\n"
        "from limbeck.model_folder import model_facts\n"
        "one = teacher_folder(Teacher(source='someone/tiny-bert'))\n"
        "print(one.revision, model_facts(one.path).layers)",
    )
    assert found == f"{SHA} 3"


def test_a_hub_name_that_is_nowhere_says_that_the_hub_does_not_answer(tmp_path: Path) -> None:
    found = _offline(
        tmp_path,
        "from limbeck.sources import *; from limbeck.config import Teacher\n"
        "from limbeck.errors import Unavailable\n"
        "try: teacher_folder(Teacher(source='someone/unknown'))\n"
        "except Unavailable as error: print(error)",
    )
    assert found == "The hub does not answer, and its local cache has no model 'someone/unknown'."


@pytest.mark.parametrize("quoted", [False, True])
def test_tsv_of_the_hub_is_read_as_it_was_written(tmp_path: Path, quoted: bool) -> None:
    """Guards GLUE's files, of which `datasets` makes one row of all between two marks that begin and end a text."""
    snapshot = _cached(tmp_path, "datasets", "someone/reviews")
    begin, end = ('"Say ""it""\t', '\tbut late"') if quoted else ('"It is late', 'the end"')
    for split, count in (("train", 8), ("test", 4)):
        rows = [f"{begin}{end}\t1"] if quoted else [f"{begin}\t1", "fine\t0", f"{end}\t0", 'so "good"\t1']
        rows += [f"text {row} of {split}\t{row % 2}" for row in range(count)]
        (snapshot / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]))
    found = _offline(
        tmp_path,
        "from limbeck.config import Dataset; from limbeck.data.hub import load_tables\n"
        "tables, _ = load_tables(Dataset(source='someone/reviews'))\n"
        "print([(one.rows, one.columns['text'][0], 'quote as in CSV' in one.notes[0]) for one in tables.values()])",
    )
    first, more = ('Say "it"\t\tbut late', 1) if quoted else (begin, 4)
    assert found == str([(8 + more, first, quoted), (4 + more, first, quoted)])


def test_tsv_of_the_hub_with_quoting_and_without_is_told() -> None:
    """`datasets` reads all files of a data set alike: one of the two would fall apart."""
    literal = TabQuotes(["text\tlabel\n", '"It is late\t1\n'])
    quoted = TabQuotes(["text\tlabel\n", '"two\n', 'lines"\t1\n'])
    assert [HubTabs({"train": files}).mixed for files in ([literal], [quoted], [literal, quoted])] == [
        False,
        False,
        True,
    ]
    assert not HubTabs({"train": [quoted]}).options


def test_lists_that_polars_wrote_are_lists(tmp_path: Path) -> None:
    """Guards large lists, which `datasets` has another feature for."""
    import datasets

    tags = datasets.LargeList(datasets.ClassLabel(names=["O", "B-x"]))
    features = datasets.Features({"tokens": datasets.LargeList(datasets.Value("large_string")), "tags": tags})
    found = datasets.Dataset.from_dict({"tokens": [["Tk"], []], "tags": [[1], []]}, features)
    table = _table(found, tmp_path)
    assert table.columns == {"tokens": [["Tk"], []], "tags": [[1], []]}
    assert table.names == {"tags": ("O", "B-x")}


def test_images_of_the_hub_load_by_its_own_layout(tmp_path: Path) -> None:
    """Guards `uoft-cs/cifar10` by name, as far as can be without the hub: `img` is an Image feature there, which is not
    decoded on the way, and `label` a ClassLabel."""
    write_digits(_cached(tmp_path, "datasets", "someone/cifar") / "plain_text", 80)
    found = _offline(
        tmp_path,
        "from limbeck.config import Dataset; from limbeck.data import load\n"
        "one = load(Dataset(source='someone/cifar'), seed=0)\n"
        "print(one.task, len(one.train), len(one.test), ''.join(one.labels), one.train.texts[0], one.revision)",
    )
    assert found == f"image_classification 80 20 0123456789 0.bmp {SHA}"


def test_zipped_images_of_the_hub_load(tmp_path: Path) -> None:
    """Guards an imagefolder with an archive a split, of which `datasets` makes one label, the archive's own folder."""
    folder = _cached(tmp_path, "datasets", "someone/beans") / "data"
    folder.mkdir()
    for split, table in (("train", "train"), ("test", "test")):
        rows = pyarrow.parquet.read_table(write_digits(tmp_path / "digits", 80) / f"{table}.parquet").to_pylist()
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for place, row in enumerate(rows):
                archive.writestr(f"{split}/digit {row['label']}/{place}.bmp", row["img"]["bytes"])
    found = _offline(
        tmp_path,
        "from limbeck.config import Dataset; from limbeck.data import load\n"
        "one = load(Dataset(source='someone/beans'), seed=0)\n"
        "print(one.task, len(one.train) + len(one.validation), len(one.test), len(one.labels), one.labels[3], "
        "one.test.texts[0], one.revision)",
    )
    assert found == f"image_classification 80 20 10 digit 3 test/digit {rows[0]['label']}/0.bmp {SHA}"


@pytest.mark.parametrize("named", ["private.bmp", "hub/../private.bmp", "pri\x00vate.bmp"])
def test_a_table_of_the_hub_names_no_files_of_this_machine(tmp_path: Path, named: str) -> None:
    """Guards whatever else lies here: a stranger's table could bring it into a data set, and so to its readers.
    The first row is of a file of the data set itself, which is read."""
    snapshot = _cached(tmp_path, "datasets", "someone/curious")
    path = write_digits(snapshot, 80) / "train.parquet"
    table = pyarrow.parquet.read_table(path)
    cells = table.column("img").to_pylist()
    (tmp_path / "private.bmp").write_bytes(cells[1]["bytes"])
    (snapshot / "own.bmp").write_bytes(cells[0]["bytes"])
    cells[:2] = [{"bytes": None, "path": str(one)} for one in (snapshot / "own.bmp", tmp_path / named)]
    table = table.set_column(0, table.schema.field("img"), pyarrow.array(cells, table.schema.field("img").type))
    pyarrow.parquet.write_table(table, path)
    (found,) = _loaded(tmp_path, {"source": "someone/curious"})
    assert found.startswith("InvalidDataset")
    assert "row 2, column 'img': found the path" in found
    assert "alone; the image itself has to be in the file" in found


def test_a_hub_data_set_loads_with_its_label_names_and_commit(tmp_path: Path) -> None:
    snapshot = _cached(tmp_path, "datasets", "someone/areas")
    for split, start in (("train", 0), ("test", 40)):
        texts = [docstrings(area)[start + index] for index in range(20) for area in ("gui", "networking")]
        table = pyarrow.table({"sentence": texts, "label": [index % 2 for index in range(40)]})
        features = {
            "sentence": {"dtype": "string", "_type": "Value"},
            "label": {"names": ["window", "wire"], "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (snapshot / "data").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, snapshot / "data" / f"{split}-00000-of-00001.parquet")
    found = _offline(
        tmp_path,
        "from limbeck.data import load; from limbeck.config import Dataset\n"
        "one = load(Dataset(source='someone/areas'), seed=1)\n"
        "print(one.revision, one.labels, len(one.test), len(one.train) + len(one.validation))",
    )
    assert found == f"{SHA} ('window', 'wire') 40 40"


LOAD = """
from limbeck.data import load
from limbeck.config import Dataset
from limbeck.errors import LimbeckError
found = []
for spec in {specs}:
    try: found.append(load(Dataset(**spec), seed=1).labels)
    except LimbeckError as error:
        found.append(" ".join([type(error).__name__, *(one.pointer for one in error.problems), error.message]))
import json; print(json.dumps(found))
"""


def _loaded(home: Path, *specs: dict[str, str]) -> list[Any]:
    found: list[Any] = json.loads(_offline(home, LOAD.format(specs=specs)))
    return found


def _csv(path: Path, *labels: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{text!r},{label}" for label in labels for text in docstrings(label)[:20] if not {'"', ","} & set(text)]
    path.write_text("\n".join(["text,label", *(row.replace("\n", " ") for row in rows)]))


def test_a_subset_of_a_hub_data_set_is_chosen_by_name(tmp_path: Path) -> None:
    """Without a name the first subset, or all of them in one, would be learned."""
    snapshot = _cached(tmp_path, "datasets", "someone/two")
    _csv(snapshot / "one" / "train.csv", "gui", "networking")
    _csv(snapshot / "two" / "train.csv", "gui", "numbers")
    configs = [{"config_name": name, "data_files": f"{name}/*.csv"} for name in ("one", "two")]
    (snapshot / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    named = {"source": "someone/two", "subset": "two"}
    right, none, wrong = _loaded(tmp_path, named, {"source": "someone/two"}, named | {"subset": "three"})
    assert right == ["gui", "numbers"]
    assert none.startswith("InvalidDataset /dataset/subset")
    assert "one has to be chosen: one, two" in none
    assert "found 'three'; 'someone/two' has one, two" in wrong


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are a POSIX thing")
def test_a_full_disk_is_not_the_data_sets_fault(tmp_path: Path) -> None:
    """Guards against a job that is failed for good, and told that its data cannot be read. A limit on file sizes stands
    in for the full disk."""
    path = _cached(tmp_path, "datasets", "someone/large") / "train.csv"
    path.write_text("text,label\n" + "\n".join(f"text number {number},a" for number in range(9_000)))
    (found,) = json.loads(_offline(tmp_path, LIMITED + LOAD.format(specs=[{"source": "someone/large"}])))
    assert found.startswith("StorageFull")


def test_a_data_set_that_needs_code_is_refused_plainly(tmp_path: Path) -> None:
    snapshot = _cached(tmp_path, "datasets", "someone/scripted")
    (snapshot / "scripted.py").write_text("raise SystemExit('this was run')")
    (found,) = _loaded(tmp_path, {"source": "someone/scripted"})
    assert found.startswith("InvalidDataset /dataset/source")
    assert "needs code of its own to load, which is not run" in found


class _Refusing(BaseHTTPRequestHandler):
    """A hub that answers by the repository's name."""

    def do_GET(self) -> None:
        codes = {"gone": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "norev": (404, "RevisionNotFound")}
        status, code = next((answer for name, answer in codes.items() if name in self.path), (503, "Busy"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Endless(BaseHTTPRequestHandler):
    """A hub with one large file, which comes for as long as somebody takes it."""

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._begin({"ETag": '"e"', "X-Repo-Commit": SHA, "Content-Length": str(10**9)})
            with suppress(OSError):
                while self.command == "GET":
                    self.wfile.write(bytes(1_000_000))
            return
        info: Any = {"id": "x/large", "sha": SHA, "siblings": []}
        body = json.dumps(
            [{"type": "file", "path": "a.csv", "size": 10**9, "oid": "e"}] if "tree" in self.path else info
        )
        self._begin({"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body.encode())

    do_HEAD = do_GET

    def _begin(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def hub() -> Iterator[str]:
    with _serving(_Refusing) as url:
        yield url


def test_a_download_can_be_stopped_in_its_middle(tmp_path: Path) -> None:
    """Guards a cancel, and the worker's belief that the process is not stuck: a large model comes for an hour."""
    code = """
from limbeck.hub import snapshot
from limbeck.errors import Interrupted
polled = 0
def poll():
    global polled
    polled += 1
    if polled > 5: raise Interrupted("enough")
try: snapshot("dataset", "x/large", None, ["*.csv"], poll)
except Interrupted as error: print(error.message)
"""
    with _serving(_Endless) as url:
        env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        env.pop("HF_HUB_OFFLINE", None)
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "enough\n", ran.stderr


def test_what_the_hub_refuses_is_told_from_a_hub_that_is_away(tmp_path: Path, hub: str) -> None:
    """The first is the user's to mend and fails a job for good; the second passes, and the job is tried again."""
    code = """
from limbeck.hub import snapshot
from limbeck.errors import LimbeckError
for name in ("x/gone", "x/gated", "x/norev", "x/a--b", "x/busy"):
    try: snapshot("dataset", name, "v2", ["*.csv"])
    except LimbeckError as error: print(type(error).__name__, *(one.pointer for one in error.problems), error.message)
"""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_TELEMETRY": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    gone, gated, revision, name, busy = ran.stdout.splitlines()
    assert gone.startswith("InvalidDataset /dataset/source dataset.source: the hub has no data set 'x/gone'")
    assert "accepted its terms" in gated
    assert revision.endswith("/dataset/revision dataset.revision: the hub's data set 'x/norev' has no revision 'v2'")
    assert name.startswith("InvalidDataset /dataset/source")
    assert busy.startswith("Unavailable The hub does not answer")
