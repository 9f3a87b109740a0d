"""Objects as files below a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from limbeck.errors import NotFound, Unavailable
from models.storage.base import CHUNK, Entry, Storage, Stored, Watch, checked, out_of_room, read_hashed, unwatched

_ASIDE = ".aside"


class LocalStorage(Storage):
    """A folder of one machine, or one that several have mounted.

    A file is written aside, brought to the disk, and then renamed to its place.

    Args:
        root: the folder.
        read_only: leave it as it is; nothing is put there.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self._root = root
        self._aside = root / _ASIDE
        self._read_only = read_only
        if not read_only:
            self._aside.mkdir(parents=True, exist_ok=True)

    def ping(self) -> None:
        # Of a mount that has gone its empty folder is left, without what was made in it at the start.
        if not os.path.isdir(self._root if self._read_only else self._aside):
            raise Unavailable(f"The storage's folder {self._root} is gone, or another one lies in its place.")
        if not self._read_only and not os.access(self._aside, os.W_OK):
            raise Unavailable(f"The storage's folder {self._root} takes no writes.")

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        target = self._path(key)
        try:
            stored = self._moved(path, key, target, watch) if move else None
            return stored or self._copied(path, key, target, watch, move=move)
        except OSError as error:
            raise out_of_room(error, f"storing {key}") from error

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        size = self.size(key)
        return _pieces(self._path(key), start, size if end is None else min(end, size))

    def local_path(self, key: str) -> Path | None:
        path = self._path(key)
        return path if path.is_file() else None

    def size(self, key: str) -> int:
        path = self.local_path(key)
        if path is None:
            raise NotFound(f"The storage has no {key!r}.")
        return path.stat().st_size

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root:
                    break
                try:
                    folder.rmdir()
                except OSError:  # not empty, or gone already
                    break

    def list(self, prefix: str = "") -> Iterator[Entry]:
        yield from _walk(self._path(prefix) if prefix else self._root, prefix)

    def signed_url(self, key: str, seconds: float) -> str | None:
        return None

    @contextmanager
    def unlisted(self) -> Iterator[Path]:
        """A folder on the storage's file system that :meth:`list` does not see; removed at the end, and by
        :meth:`discard_unfinished` where it is so old that whoever made it was killed."""
        folder = Path(tempfile.mkdtemp(dir=self._aside))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def discard_unfinished(self, before: datetime) -> int:
        freed = 0
        for left in self._aside.iterdir():
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < before.timestamp():
                    freed += _remove(left)
        return freed

    def _path(self, key: str) -> Path:
        return self._root.joinpath(*checked(key).split("/"))

    def _moved(self, path: Path, key: str, target: Path, watch: Watch) -> Stored | None:
        """Rename the file to its place; ``None`` where it is on another file system."""
        if path.stat().st_dev != self._root.stat().st_dev:
            return None
        digest = hashlib.sha256()
        size = sum(len(piece) for piece in read_hashed(path, digest, watch))
        os.utime(path)  # its age is that of the object, not of the file's content: the sweep of orphans goes by it
        _sync(path)
        _place(path, target)
        return Stored(key, size, digest.hexdigest())

    def _copied(self, path: Path, key: str, target: Path, watch: Watch, *, move: bool) -> Stored:
        digest = hashlib.sha256()
        aside = self._aside / uuid.uuid4().hex
        try:
            with aside.open("xb") as file:
                size = sum(file.write(piece) for piece in read_hashed(path, digest, watch))
                file.flush()
                os.fsync(file.fileno())
            _place(aside, target)
        finally:
            aside.unlink(missing_ok=True)
        if move:
            path.unlink()
        return Stored(key, size, digest.hexdigest())


def _place(file: Path, target: Path) -> None:
    """Rename ``file`` to ``target``, and bring the new names to the disk."""
    while True:
        made = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.replace(target)
        except FileNotFoundError:
            if not file.exists():
                raise
            continue  # a delete has just removed the folder because it was empty
        for folder in {target.parent, *(folder.parent for folder in made)}:
            _sync(folder)
        return


def _remove(path: Path) -> int:
    """Remove a file or a folder; the bytes that it alone had."""
    if not path.is_dir():
        size = path.stat().st_size
        path.unlink()
        return size
    facts = [file.stat() for file in path.rglob("*") if file.is_file()]
    shutil.rmtree(path, ignore_errors=True)
    return sum(one.st_size for one in facts if one.st_nlink == 1)  # an object that is linked stays


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (piece := file.read(min(CHUNK, left))):
            left -= len(piece)
            yield piece


def _walk(folder: Path, prefix: str) -> Iterator[Entry]:
    try:
        found = sorted(os.scandir(folder), key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in found:
        if not prefix and item.name == _ASIDE:
            continue
        key = f"{prefix}/{item.name}" if prefix else item.name
        if item.is_dir(follow_symlinks=False):
            yield from _walk(Path(item.path), key)
            continue
        with suppress(FileNotFoundError):
            facts = item.stat(follow_symlinks=False)
            yield Entry(key, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))
