"""Other servers with the same student, each from PyPI in a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.processes import running
from benchmarks.serving.students import CACHE

_TORCH = "torch==2.13.0"
_INFINITY = "infinity-emb[torch,server]==0.0.78"
#: infinity takes typer and click of old; its sentence-transformers 3 does not go with transformers 5, and its engine
#: for ONNX Runtime imports optimum's BetterTransformer, which goes with transformers 4.48 at the latest.
_INFINITY_PINS = (_INFINITY, "sentence-transformers==3.4.1", "numpy==1.26.4", "click==8.1.8", "typer==0.12.5")


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is not Limbeck's.

    Args:
        requirements: pinned, for pip.
        command: behind the environment's own ``bin/``; ``{student}`` and ``{port}`` are filled in.
        ready: what is asked until it answers.
    """

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    path: str
    ready: str
    form: str = "torch"  #: ``onnx`` and ``onnx-int8``: it gets the graph that Limbeck exported

    @property
    def venv(self) -> Path:
        return CACHE / "venvs" / self.name.removesuffix(" onnx-int8").removesuffix(" onnx").replace(" ", "-")

    def body(self, text: str) -> Mapping[str, Any]:
        if self.path == "/classify":
            return {"model": "student", "input": [text]}
        return {"inputs": text}

    def label(self, answer: Any) -> tuple[str, float]:
        """The best label of an answer, and its score."""
        while not isinstance(answer, dict) or "data" in answer:
            answer = answer["data"] if isinstance(answer, dict) else _best(answer)
        return str(answer["label"]), float(answer["score"])

    @contextmanager
    def start(self, student: Path) -> Iterator[tuple[str, int]]:
        """Address and process id."""
        with tempfile.TemporaryDirectory(prefix="limbeck-peer-") as name:
            folder = Path(name, "student")
            _lay_out(student, folder, self.form)
            command = [part.format(student=folder, port="{port}") for part in self.command]
            command[0] = str(self.venv / "bin" / command[0])
            environment = {
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": str(Path(name, "hub")),
                "DO_NOT_TRACK": "1",
                "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            }
            environment.pop("PYTHONPATH", None)
            with running(command, environment, ready=self.ready, folder=Path(name)) as found:
                yield found


_SCRIPTS = Path(__file__).parent / "peer_servers"
#: Behind infinity's own command.
_INFINITY_OPTIONS = ("v2", "--model-id", "{student}", "--served-model-name", "student", "--device", "cpu")
_INFINITY_OPTIONS += ("--port", "{port}", "--engine")


_OPTIMUM = (
    "infinity-emb[torch,server,optimum]==0.0.78",
    "optimum==1.27.0",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "pyarrow==21.0.0",  # a later one wants the numpy 2 that infinity refuses
)
#: The graph is fused already; what optimum would make of it is no better, and it writes into the student's folder.
#: Its own warm-up is longer than the model can read, which this engine does not cut; ours stands before each load.
_AS_IT_IS = ("--onnx-disable-optimize", "--no-model-warmup")

PEERS = (
    Peer(
        "infinity",
        (*_INFINITY_PINS, "transformers==4.57.6"),
        ("infinity_emb", *_INFINITY_OPTIONS, "torch"),
        "/classify",
        "/health",
    ),
    *(
        Peer(
            f"infinity-optimum {form}",
            (*_INFINITY_PINS[1:], *_OPTIMUM, "transformers==4.48.3"),
            ("python", str(_SCRIPTS / "infinity_optimum.py"), *_INFINITY_OPTIONS, "optimum", *_AS_IT_IS),
            "/classify",
            "/health",
            form,
        )
        for form in ("onnx", "onnx-int8")
    ),
    Peer(
        "litserve",
        ("litserve==0.2.19", "transformers==5.23.0"),
        ("python", str(_SCRIPTS / "litserve_server.py"), "{student}", "{port}"),
        "/predict",
        "/health",
    ),
    Peer(
        "pipeline",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "transformers==5.23.0"),
        ("python", str(_SCRIPTS / "pipeline_server.py"), "{student}", "{port}"),
        "/predict",
        "/docs",
    ),
)


def install(peer: Peer) -> None:
    """Make the peer's environment, once for what it requires.

    Raises:
        CalledProcessError: pip failed; what it said stands above.
    """
    wanted = "\n".join((_TORCH, *peer.requirements))
    mark = peer.venv / "requirements"
    if mark.is_file() and mark.read_text() == wanted:
        return
    print(f"installing {peer.venv.name} …", flush=True)
    shutil.rmtree(peer.venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(peer.venv)], check=True)
    pip = [str(peer.venv / "bin" / "pip"), "install", "-qq", "--disable-pip-version-check"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(_TORCH)
        constraints.flush()
        subprocess.run([*pip, "-c", constraints.name, _TORCH, *peer.requirements], check=True)
    mark.write_text(wanted)


def versions(peer: Peer) -> Sequence[str]:
    """What pip says is installed there of what matters."""
    listed = subprocess.run(
        [str(peer.venv / "bin" / "pip"), "list", "--format=freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    names = ("torch", "transformers", "litserve", "infinity", "optimum", "onnxruntime", "fastapi", "numpy")
    return [line for line in listed if line.partition("==")[0].startswith(names)]


def _lay_out(student: Path, folder: Path, form: str) -> None:
    """A folder with what the peer reads: the weights, or one graph, under the name that infinity looks for."""
    folder.mkdir()
    graph = {"onnx": "model.onnx", "onnx-int8": "model_int8.onnx"}.get(form)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(student / name, folder / name)
    if graph is None:
        shutil.copy(student / "model.safetensors", folder / "model.safetensors")
    else:
        shutil.copy(student / "onnx" / graph, folder / "model.onnx")


def _best(answers: Any) -> Any:
    first = answers[0]
    return max(answers, key=lambda one: one["score"]) if isinstance(first, dict) else first
