"""How fast students answer over HTTP: ``python -m benchmarks.serving [--goals]``.

Cuts students of 3 and 6 layers from the built-in teacher (their heads are random: only time is measured here), stores
them as a job would, starts the real API (``python -m api``) and loads it with wrk at 1, 8, 32 and 64 connections, each
request one real text. In the same minutes the same texts are answered in this process by the same runtime, without
HTTP: that is the limit.

The load generator runs on the same cores as the servers and takes some of what it measures; wrk takes least.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.report import ROOT, machine, markdown_table, replace_part, write_json

CLIENTS = (1, 8, 32, 64)
CACHE = Path(__file__).parent / ".cache" / "serving"
PAGE = ROOT / "docs" / "performance.md"
MAX_LENGTH = 64
#: Texts of one kind that the requests go round in.
_TEXTS = 512
_START_SECONDS = 120.0

_SCRIPT = """\
local bodies, path, place = {{}}, "{path}", 0
for line in io.lines("{bodies}") do bodies[#bodies + 1] = line end
math.randomseed(1)
init = function() place = math.random(#bodies) end
request = function()
  place = place % #bodies + 1
  return wrk.format("POST", path, {{["Content-Type"] = "application/json"}}, bodies[place])
end
done = function(summary, latency)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), bad + summary.errors.status))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one server answered to so many connections."""

    server: str
    layers: int
    texts: str
    clients: int
    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True, slots=True)
class Start:
    """A server's start, and what it holds after the load."""

    server: str
    ready_seconds: float
    memory_mb: float  #: proportional set size of all its processes


def main() -> int:
    options = _options()
    if shutil.which("wrk") is None:
        print("benchmarks.serving needs wrk on the path: apt-get install wrk", file=sys.stderr)
        return 2
    loads: list[Load] = []
    starts: list[Start] = []
    for layers in options.layers:
        student = student_folder(layers)
        for kind in options.texts:
            texts = texts_of(kind)
            for repeat in range(options.repeats):
                for server in _servers(student):
                    print(f"{server.name}, {layers} layers, {kind} texts, run {repeat + 1}", flush=True)
                    start, found = _measure(server, texts, options.seconds, layers, kind, options.clients)
                    loads += found
                    starts.append(start)
            loads += _in_process(student, texts, options.seconds, layers, kind, options.clients)
    report = {
        "command": " ".join(("python -m benchmarks.serving", *sys.argv[1:])),
        "machine": machine() | {"load": os.getloadavg()[0]},
        "loads": [asdict(one) for one in _medians(loads)],
        "starts": [asdict(one) for one in starts],
    }
    table = _table(report["loads"], starts)
    print(table)
    print(f"written to {write_json('serving', report)}")
    if options.page:
        replace_part(PAGE, "serving", f"```\n{report['command']}\n```\n\n{table}")
    missed = _missed(report["loads"])
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if options.goals and missed else 0


@dataclass(frozen=True, slots=True)
class Server:
    """One way to serve the student."""

    name: str
    start: Callable[[], Any]  #: a context manager that gives (url, process id)
    path: str
    body: Callable[[str], Mapping[str, Any]]


def _servers(student: Path) -> list[Server]:
    def inputs(text: str) -> Mapping[str, Any]:
        return {"inputs": text}

    return [
        Server(f"limbeck {form}", partial(_limbeck, student, form), "/v1/models/mdl_bench/predict", inputs)
        for form in ("onnx", "onnx-int8")
    ]


def student_folder(layers: int) -> Path:
    """A cut of the built-in teacher with both exported forms, made once."""
    folder = CACHE / f"minilm-{layers}"
    if (folder / "done").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from limbeck.batches import Encoded
    from limbeck.export import export_onnx
    from limbeck.runtime.encoding import Encoder
    from limbeck.runtime.student import StudentFacts
    from limbeck.sources import builtin_minilm
    from limbeck.tasks.sequence_classification import SequenceClassification

    shutil.rmtree(folder, ignore_errors=True)
    source = builtin_minilm().path
    config: Any = AutoConfig.from_pretrained(source)
    config.num_hidden_layers, config.id2label = layers, {0: "negative", 1: "positive"}
    config.label2id = {name: place for place, name in config.id2label.items()}
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype="float32")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    described = {
        "version": 1,
        "task": "sequence_classification",
        "labels": ["negative", "positive"],
        "max_length": MAX_LENGTH,
        "pair": False,
    }
    (folder / "limbeck.json").write_text(json.dumps(described))
    rows = Encoder.load(folder, StudentFacts.read(folder)).encode(texts_of("short")[:200])
    starts = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    ids = np.array([token for row in rows for token in row.ids], dtype=np.int32)
    # Labels that mean nothing: int8's gate cannot fail on them, which is why this is no way to judge a student.
    data = Encoded(ids, None, starts, np.arange(len(rows)) % 2)
    export_onnx(folder, ("onnx", "onnx-int8"), rows, data, task=SequenceClassification(), seed=1)
    (folder / "done").touch()
    return folder


def texts_of(kind: str) -> list[str]:
    """Real texts: SST-2's sentences, or headlines and reviews of about 40 tokens."""
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data"))
    with gzip.open(data / "sst2_glue" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        sentences = [str(json.loads(line)["text"]) for line in lines]
    if kind == "short":
        return sentences[:_TEXTS]
    return [f"{one} {two}" for one, two in zip(sentences[:_TEXTS], sentences[_TEXTS - len(sentences) :], strict=False)]


@contextmanager
def _limbeck(student: Path, form: str) -> Iterator[tuple[str, int]]:
    from models.db import Database
    from models.model import ModelKind
    from models.repository.catalogue import StoredFile, add_model
    from models.settings import Settings
    from models.storage import open_storage

    with tempfile.TemporaryDirectory(prefix="limbeck-serving-") as name:
        settings = Settings(data_dir=Path(name))
        database = Database(settings)
        database.migrate()
        storage = open_storage(settings)
        files = []
        unwanted = {"onnx": "model_int8.onnx", "onnx-int8": "model.onnx"}[form]
        for path in sorted(path for path in student.rglob("*") if path.is_file() and path.name != unwanted):
            inside = path.relative_to(student).as_posix()
            stored = storage.put_file(path, f"models/mdl_bench/{inside}")
            files.append(StoredFile(inside, stored.key, stored.bytes, stored.sha256))
        with database.session() as session:
            add_model(session, kind=ModelKind.STUDENT, name="bench", files=files, model_id="mdl_bench")
        database.dispose()
        command = [sys.executable, "-m", "api", "--port", "{port}"]
        with running(command, dict(os.environ, LIMBECK_DATA_DIR=name), ready="/healthz", folder=Path(name)) as found:
            yield found


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], *, ready: str, folder: Path
) -> Iterator[tuple[str, int]]:
    """Start a server on a free port, wait until ``ready`` answers, and end it with all that it started."""
    from limbeck.cli.local_server import free_port

    port = free_port()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=True,
            cwd=ROOT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield url, process.pid
    finally:
        _end(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, 9)  # whatever it left behind in its session
    except ProcessLookupError:
        pass
    process.wait()


def _measure(
    server: Server, texts: Sequence[str], seconds: float, layers: int, kind: str, clients: Sequence[int]
) -> tuple[Start, list[Load]]:
    began = time.monotonic()
    with server.start() as (url, pid), tempfile.TemporaryDirectory() as folder:
        _first_answer(url + server.path, server.body(texts[0]))
        ready = time.monotonic() - began
        script = Path(folder, "post.lua")
        bodies = Path(folder, "bodies")
        bodies.write_text("".join(json.dumps(server.body(text)) + "\n" for text in texts))
        script.write_text(_SCRIPT.format(path=server.path, bodies=bodies))
        _wrk(url, script, clients=8, seconds=1.0)  # warms up
        found = []
        for count in clients:
            requests, duration, p50, p95, p99, errors = _wrk(url, script, clients=count, seconds=seconds)
            rate = requests / duration * 1e6
            found.append(Load(server.name, layers, kind, count, rate, p50 / 1e3, p95 / 1e3, p99 / 1e3, errors))
        return Start(server.name, ready, _pss(pid)), found


def _first_answer(url: str, body: Mapping[str, Any]) -> None:
    answer = httpx.post(url, json=body, timeout=_START_SECONDS)
    answer.raise_for_status()


def _wrk(url: str, script: Path, *, clients: int, seconds: float) -> tuple[int, ...]:
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    found = re.search(r"^RESULT (.+)$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return tuple(int(number) for number in found[1].split())


def _pss(pid: int) -> float:
    """MB that the process and those below it hold, shared pages divided among their holders."""
    import psutil

    root = psutil.Process(pid)
    return sum(one.memory_full_info().pss for one in [root, *root.children(recursive=True)]) / 1024**2


def _in_process(
    student: Path, texts: Sequence[str], seconds: float, layers: int, kind: str, clients: Sequence[int]
) -> list[Load]:
    """The limit: the same runtime with the same number of callers, no HTTP."""
    from limbeck.runtime import Predictor

    found = []
    for form in ("onnx", "onnx-int8"):
        predictor = Predictor.load(student, format=form)  # type: ignore[arg-type]
        for count in clients:
            callers = min(count, os.cpu_count() or 1)
            window = max(1, count // callers)
            slices = [list(texts[i : i + window]) for i in range(0, len(texts) - window + 1, window)]
            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(predictor.predict, slices[:8]))
                began, done = time.perf_counter(), 0
                while time.perf_counter() - began < seconds:
                    list(pool.map(predictor.predict, slices))
                    done += len(slices) * window
                rate = done / (time.perf_counter() - began)
            found.append(Load(f"in process {form}", layers, kind, count, rate, 0, 0, 0, 0))
    return found


def _medians(loads: Sequence[Load]) -> list[Load]:
    """One row where a server was measured several times."""
    groups: dict[tuple[str, int, str, int], list[Load]] = {}
    for one in loads:
        groups.setdefault((one.server, one.layers, one.texts, one.clients), []).append(one)

    def middle(rows: list[Load], name: str) -> float:
        return statistics.median(getattr(row, name) for row in rows)

    return [
        Load(
            *key,
            middle(rows, "requests_per_second"),
            middle(rows, "p50_ms"),
            middle(rows, "p95_ms"),
            middle(rows, "p99_ms"),
            sum(row.errors for row in rows),
        )
        for key, rows in groups.items()
    ]


def _table(loads: Sequence[Mapping[str, Any]], starts: Sequence[Start]) -> str:
    clients = sorted({one["clients"] for one in loads})
    head = [
        "server",
        "layers",
        "texts",
        *(f"{count}" for count in clients),
        "p50 / p99 at most clients",
        "start, memory",
    ]
    rows = []
    for server, layers, kind in dict.fromkeys((one["server"], one["layers"], one["texts"]) for one in loads):
        mine = {
            one["clients"]: one
            for one in loads
            if (one["server"], one["layers"], one["texts"]) == (server, layers, kind)
        }
        last = mine[clients[-1]]
        begun = [one for one in starts if one.server == server]
        started = (
            f"{statistics.median(one.ready_seconds for one in begun):.1f} s, "
            f"{statistics.median(one.memory_mb for one in begun):.0f} MB"
            if begun
            else ""
        )
        timing = f"{last['p50_ms']:.0f} / {last['p99_ms']:.0f} ms" if last["p50_ms"] else ""
        rates = [f"{mine[count]['requests_per_second']:.0f}" for count in clients]
        rows.append([server, str(layers), kind, *rates, timing, started])
    return markdown_table(head, rows)


def _missed(loads: Sequence[Mapping[str, Any]]) -> list[str]:
    """The goals of ``shared/PERFORMANCE.md`` that this run does not reach."""
    rate = {(one["server"], one["layers"], one["texts"], one["clients"]): one for one in loads}
    missed = []
    for (server, layers, kind, clients), one in rate.items():
        where = f"{server}, {layers} layers, {kind} texts, {clients} clients"
        found = one["requests_per_second"]
        if one["errors"]:
            missed.append(f"{where}: {one['errors']} requests failed")
        if not server.startswith("limbeck"):
            continue
        form = server.removeprefix("limbeck ")
        limit = rate.get((f"in process {form}", layers, kind, clients))
        if limit and clients in _SHARE and found < _SHARE[clients] * limit["requests_per_second"]:
            share = found / limit["requests_per_second"]
            missed.append(f"{where}: {share:.2f} of the rate in process; goal {_SHARE[clients]}")
        if clients == CLIENTS[-1] and one["p99_ms"] > 2.5 * one["p50_ms"]:
            missed.append(f"{where}: p99 is {one['p99_ms'] / one['p50_ms']:.1f} times p50; goal 2.5")
    return missed


#: Of the rate in process, by clients.
_SHARE = {8: 0.6, 64: 0.75}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--texts", nargs="+", choices=["short", "long"], default=["short", "long"])
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all servers; medians are shown")
    parser.add_argument("--page", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--goals", action="store_true", help="exit 1 where a goal is missed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
