"""Stored files as files of this machine, hashed before anybody reads them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from limbeck.errors import DamagedFile
from models.storage import Storage

_STALE_SECONDS = 6 * 3600


class FileFacts(Protocol):
    """What is known of a stored file; a row of ``model_files`` has it."""

    @property
    def path(self) -> str: ...  # within the model's folder

    @property
    def key(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...


class LocalFiles:
    """Files of a storage, fetched to a folder under the name of their sha256 unless the storage is local itself.

    Several processes may share the folder: a name means one content, and appears when that is whole.

    Args:
        folder: made when needed.
        limit: bytes that the fetched files may take together; the least recently used goes first.
    """

    def __init__(self, storage: Storage, folder: Path, limit: int) -> None:
        self._storage = storage
        self._folder = folder
        self._limit = limit

    @contextmanager
    def laid_out(self, files: Sequence[FileFacts]) -> Iterator[Path]:
        """A folder that has ``files`` under their paths, as links, for as long as the block lasts.

        Raises:
            DamagedFile: a file's content is not that of its sha256.
            NotFound, Unavailable: from the storage.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".student-") as name:
            for file in files:
                link = Path(name, file.path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._find(file).absolute())
            self._evict({file.sha256 for file in files})
            yield Path(name)

    def _find(self, file: FileFacts) -> Path:
        stored = self._storage.local_path(file.key)
        if stored is not None:
            _require_whole(stored, file)
            return stored
        path = self._folder / file.sha256
        with suppress(FileNotFoundError):  # not fetched yet, or evicted by another load meanwhile
            if _sha256(path) == file.sha256:
                os.utime(path)
                return path
        # A name of this call's own: another thread or process may be fetching the same file.
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".fetch-") as aside:
            fetched = Path(aside, "file")
            self._storage.get_file(file.key, fetched)
            _require_whole(fetched, file)
            fetched.replace(path)
        return path

    def _evict(self, kept: set[str]) -> None:
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # other loads come to their end, and evict as well
                facts = path.stat()
                if not path.name.startswith("."):
                    files.append((path.name in kept, facts.st_mtime, facts.st_size, path))
                elif facts.st_mtime < time.time() - _STALE_SECONDS:  # left by a process that was killed
                    shutil.rmtree(path, ignore_errors=True)
        total = 0
        for needed, _, size, path in sorted(files, reverse=True):
            total += size
            if total > self._limit and not needed:
                path.unlink(missing_ok=True)


def _require_whole(path: Path, file: FileFacts) -> None:
    if _sha256(path) != file.sha256:
        raise DamagedFile(f"The stored file {file.key} is not what was stored: its sha256 is not {file.sha256}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
