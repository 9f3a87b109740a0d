"""Other servers of the same model, each installed in an environment of its own below ``benchmarks/.cache``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
#: Every environment has this torch, the CPU's: anything looser brings gigabytes of CUDA.
_TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with."""

    name: str
    packages: Sequence[str]
    program: Sequence[str]  #: behind the environment's Python; ``{student}`` and ``{port}`` are filled in
    path: str
    body: Callable[[str], Mapping[str, Any]]
    ready: str = "/"
    environment: Mapping[str, str] = field(default_factory=lambda: {"HF_HUB_OFFLINE": "1"})

    def command(self, student: Path, cache: Path) -> list[str]:
        """How it is started; installs it first where that has not been done."""
        python = _environment(cache / "peers" / self.name.replace(" ", "-"), (_TORCH, *self.packages))
        return [str(python), *(part.replace("{student}", str(student)) for part in self.program)]


def _environment(folder: Path, packages: Sequence[str]) -> Path:
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists() or done.read_text() != "\n".join(packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for package in (packages[:1], packages[1:]):  # torch first, so that nothing else chooses another
            if package:
                subprocess.run([str(python), "-m", "pip", "install", "-q", *package], check=True)
        done.write_text("\n".join(packages))
    return python


PEERS: tuple[Peer, ...] = (
    Peer(
        "FastAPI + pipeline",
        ("transformers==5.23.0", "fastapi==0.165.0", "uvicorn[standard]"),
        (str(_HERE / "pipeline_server.py"), "{student}", "{port}"),
        "/predict",
        lambda text: {"text": text},
    ),
    Peer(
        "LitServe (torch)",
        ("transformers==5.23.0", "litserve==0.2.19"),
        (str(_HERE / "litserve_server.py"), "{student}", "{port}"),
        "/predict",
        lambda text: {"text": text},
        ready="/health",
    ),
)
