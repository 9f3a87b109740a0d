"""Folders in which a process works for a while: locked while it lives, and swept by others where it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from limbeck.errors import Unavailable

#: Of workers' attempts and help, and of what is sent to the API.
_PATTERNS = ("job_*-*", "upload-*")
_JUST_MADE_SECONDS = 60.0


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A folder that was made just now, locked while the block lasts, and gone afterwards."""
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make(scratch: Path) -> None:
    """For everything that starts servers, before it does: what works there would fail each time.

    Raises:
        Unavailable: the folder cannot be made, or takes no writes.
    """
    reason = "it takes no writes"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        if os.access(scratch, os.W_OK):
            return
    except OSError as error:
        reason = str(error.strerror)
    raise Unavailable(f"The folder of LIMBECK_SCRATCH_DIR cannot be used: {scratch}: {reason}")


def sweep(scratch: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in (found for pattern in _PATTERNS for found in scratch.glob(pattern)):
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
