"""What tells machines apart that would round differently; imports no torch, so that a worker can ask it too."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cpu_name() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str:
    """The version of a package that is installed here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def likeness() -> str:
    """Machines of one likeness compute the same bits on their CPUs, with as many threads."""
    return f"{cpu_name()}, torch {installed('torch')}, transformers {installed('transformers')}"
