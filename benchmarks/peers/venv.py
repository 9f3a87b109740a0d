"""The virtual environment of the other trainers, made once with pinned versions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.report import ROOT

CONSTRAINTS = Path(__file__).parent / "constraints.txt"
_FOLDER = ROOT / "benchmarks" / ".cache" / "venvs"
#: torch first and alone: what follows then finds it there, and takes no other build of it.
_WANTED = (("torch==2.13.0",), ("textbrewer==0.2.1", "transformers", "accelerate", "numpy", "safetensors"))


class PeersUnavailable(Exception):
    """The other trainers cannot be run here."""


def ensure_venv() -> Path:
    """The environment's Python; made where it is not there yet, or where the pinned versions have changed.

    Raises:
        PeersUnavailable: pip failed; it has said why on stderr.
    """
    digest = hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()[:12]
    folder = _FOLDER / f"trainers-{digest}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if complete.exists():
        return python
    print("Installing the other trainers into a virtual environment (a few minutes, once)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    for packages in _WANTED:
        quiet = ["-qq", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
        if subprocess.run([str(python), "-m", "pip", "install", *quiet, *packages]).returncode:
            raise PeersUnavailable(f"pip could not install {', '.join(packages)} as {CONSTRAINTS} has them")
    complete.touch()
    return python
