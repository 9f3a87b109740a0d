"""The folder in which a worker's child process works, and what that process gets from the worker's environment."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.settings import Settings
from worker.slots import Place

_HOME = Path(__file__).resolve().parent.parent
_JUST_MADE_SECONDS = 60.0


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """An attempt's own folder, locked while the attempt lives, and gone afterwards."""
    folder.mkdir(parents=True)
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch(settings: Settings) -> None:
    """Remove the folders of attempts whose worker was killed."""
    assert settings.scratch_dir is not None
    for folder in settings.scratch_dir.glob("job_*-*"):
        try:
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(lock.fileno()).st_mtime > _JUST_MADE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:  # it is being made or removed just now, or somebody made it again too late
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _JUST_MADE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # somebody works in it
            continue


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
    if settings.hub_offline:
        ours |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return ours
