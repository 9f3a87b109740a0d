"""All that is measured side by side, and the measuring of one of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.serving.limbeck_server import FORMS, limbeck
from benchmarks.serving.load import Load, press, write_script
from benchmarks.serving.peers import PEERS
from benchmarks.serving.processes import START_SECONDS, pss
from limbeck.runtime import Predictor

#: Texts on which a server has to agree with the runtime in this process.
_COMPARED = 32


@dataclass(frozen=True, slots=True)
class Server:
    """One way to serve a student."""

    name: str
    start: Callable[[Path], AbstractContextManager[tuple[str, int]]]  #: student -> address and process id
    path: str
    body: Callable[[str], Mapping[str, Any]]
    label: Callable[[Any], tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Start:
    """A server's start, what it holds after the load, and whether it answered as it should."""

    server: str
    layers: int
    first_answer_seconds: float  #: from the start of its process
    memory_mb: float  #: proportional set size of all its processes
    agreement: float  #: of its labels with those of the runtime in this process


def servers(only: Sequence[str]) -> list[Server]:
    """Those whose names begin with one of ``only``; Limbeck's first, then the peers."""
    own = [
        Server(f"limbeck {form}", partial(limbeck, form=form), "/v1/models/mdl_bench/predict", _inputs, _first)
        for form in FORMS
    ]
    found = own + [Server(peer.name, peer.start, peer.path, peer.body, peer.label) for peer in PEERS]
    return [one for one in found if one.name.startswith(tuple(only))]


def measure(
    server: Server,
    student: Path,
    layers: int,
    texts: Mapping[str, Sequence[str]],
    *,
    seconds: float,
    clients: Sequence[int],
) -> tuple[Start, list[Load]]:
    """One turn: start, first answer, agreement, and a load for each kind of texts and number of clients."""
    with server.start(student) as (url, pid), tempfile.TemporaryDirectory() as folder:
        some = next(iter(texts.values()))
        with httpx.Client(base_url=url, timeout=START_SECONDS) as http:
            _ask(http, server, some[0])
            ready = time.time() - psutil.Process(pid).create_time()
            agreement = _agreement(http, server, student, some[:_COMPARED])
        found = []
        for kind, each in texts.items():
            script = write_script(Path(folder), server.path, [server.body(text) for text in each])
            where = server.name, layers, kind
            press(url, script, clients=8, seconds=1, where=where)  # warms up
            found += [press(url, script, clients=count, seconds=seconds, where=where) for count in clients]
        return Start(server.name, layers, ready, pss(pid), agreement), found


def _agreement(http: httpx.Client, server: Server, student: Path, texts: Sequence[str]) -> float:
    form = "onnx-int8" if server.name.endswith("int8") else "onnx"
    own = Predictor.load(student, format=form)  # type: ignore[arg-type]
    same = [_ask(http, server, text)[0] == own.predict(text)[0]["label"] for text in texts]
    return sum(same) / len(same)


def _ask(http: httpx.Client, server: Server, text: str) -> tuple[str, float]:
    answer = http.post(server.path, json=server.body(text))
    if not answer.is_success:
        raise RuntimeError(f"{server.name} answered {answer.status_code}: {answer.text[:500]}")
    return server.label(answer.json())


def _inputs(text: str) -> Mapping[str, Any]:
    return {"inputs": text}


def _first(answer: Any) -> tuple[str, float]:
    return answer[0]["label"], answer[0]["score"]
