"""A hundred students on one server within a memory limit, and what one that everybody asks does to the others."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.serving.limbeck_server import limbeck
from benchmarks.serving.load import Load, command, read, write_script
from benchmarks.serving.processes import peak_of, pss

STUDENTS = 100
#: About a dozen of them fit.
LIMIT_MB = 512
_FORM = "onnx-int8"
_HOT_CLIENTS = 64


@dataclass(frozen=True, slots=True)
class Times:
    """Of single requests over one connection, milliseconds."""

    count: int
    p50: float
    p99: float
    largest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        ms = sorted(one * 1000 for one in seconds)
        return cls(len(ms), statistics.median(ms), ms[min(len(ms) - 1, int(0.99 * len(ms)))], ms[-1])


@dataclass(frozen=True, slots=True)
class Many:
    """One run."""

    students: int
    form: str
    limit_mb: float
    idle_mb: float  #: PSS before the first question
    peak_mb: float  #: PSS at its highest
    cold: Times  #: each student's first answer, nobody else asking
    warm_beside_hot: Times  #: loaded students while one is asked by 64 clients
    cold_beside_hot: Times  #: students that have to be loaded meanwhile
    hot: Load


def many(student: Path, texts: Sequence[str], seconds: float, *, layers: int = 3) -> Many:
    """Measure; ``seconds`` is how long the hot student is asked."""
    names = [f"mdl_{number:03d}" for number in range(STUDENTS)]
    limit = {"LIMBECK_PREDICT_MEMORY_BYTES": str(LIMIT_MB * 1024**2)}
    with limbeck(student, _FORM, names, limit) as (url, pid), httpx.Client(base_url=url, timeout=60) as http:
        idle = pss(pid)
        with peak_of(pid) as peak:
            cold = [_took(http, name, texts[0]) for name in names]
            warm = names[-5:]  # asked last, so they are loaded
            hot, besides, first = _beside(url, http, texts, seconds, hot=names[-6], warm=warm, cold=names[:-6])
    where = (f"limbeck {_FORM}, the hot one of {STUDENTS}", layers, "short")
    return Many(
        STUDENTS,
        _FORM,
        LIMIT_MB,
        idle,
        peak[0],
        Times.of(cold),
        Times.of(besides),
        Times.of(first),
        read(hot, _HOT_CLIENTS, where),
    )


def _beside(
    url: str,
    http: httpx.Client,
    texts: Sequence[str],
    seconds: float,
    *,
    hot: str,
    warm: Sequence[str],
    cold: Sequence[str],
) -> tuple[str, list[float], list[float]]:
    """What wrk said of the hot student, and how long the warm and the cold ones took meanwhile."""
    besides, first = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        script = write_script(Path(folder), _path(hot), [{"inputs": text} for text in texts])
        wrk = subprocess.Popen(
            command(url, script, clients=_HOT_CLIENTS, seconds=seconds), stdout=subprocess.PIPE, text=True
        )
        try:
            # The cold ones come rarely, so that the warm ones stay loaded.
            for round_, name in enumerate(_while(wrk, cold, seconds)):
                besides += [_took(http, one, texts[round_]) for one in warm]
                first.append(_took(http, name, texts[round_]))
            return wrk.communicate(timeout=60)[0], besides, first
        finally:
            wrk.kill()
            wrk.wait()


def _while(wrk: subprocess.Popen[str], names: Sequence[str], seconds: float) -> Iterator[str]:
    """Names, from the one that was dropped first, while the load lasts; the first second is left out."""
    began = time.monotonic()
    time.sleep(min(1.0, seconds / 4))
    for name in names:
        if wrk.poll() is not None or time.monotonic() - began > seconds:
            return
        yield name


def _took(http: httpx.Client, name: str, text: str) -> float:
    began = time.perf_counter()
    http.post(_path(name), json={"inputs": text}).raise_for_status()
    return time.perf_counter() - began


def _path(name: str) -> str:
    return f"/v1/models/{name}/predict"
