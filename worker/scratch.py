"""The folder in which a worker's child process works, and what that process gets from the worker's environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.timing import SECONDS_VARIABLE
from models.scratch import held
from models.settings import Settings
from worker.slots import Place

_HOME = Path(__file__).resolve().parent.parent


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """An attempt's own folder, locked while the attempt lives, and gone afterwards."""
    folder.mkdir(parents=True)
    with held(folder):
        yield


def child_environment(settings: Settings, place: Place, folder: Path) -> dict[str, str]:
    """The process' own: without the server's settings, which hold its passwords."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
    ours |= place.environment()
    ours["PYTHONPATH"] = os.pathsep.join(part for part in (str(_HOME), ours.get("PYTHONPATH")) if part)
    ours["PYTHONSAFEPATH"] = "1"
    # However the trainer ends, what it leaves there goes with the attempt.
    temporary = folder / "tmp"
    temporary.mkdir()
    ours["TMPDIR"] = str(temporary)
    ours[SECONDS_VARIABLE] = str(settings.latency_seconds)
    if settings.hub_offline:
        ours |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return ours
