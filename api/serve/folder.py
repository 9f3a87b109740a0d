"""Students in a folder of this machine, such as ``limbeck download`` leaves: no database, no storage."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api.shelves import Found
from limbeck.errors import InvalidInput, NotFound, Unavailable
from limbeck.formats import FILES
from limbeck.runtime.student import IMAGE_SIDE_FILES, SIDE_FILES
from models.repository.catalogue import StoredFile
from models.storage.local import LocalStorage

_STUDENT = SIDE_FILES[0]
_GRAPHS = "onnx"


@dataclass(frozen=True, slots=True)
class _Hashed:
    stamp: tuple[int, int, int]
    sha256: str


class FolderShelf:
    """Students by the names of their folders.

    A folder that is replaced, or a link that is switched, is seen within two seconds; an alias is a symbolic link.

    Args:
        folder: a student's folder, or one with students' folders in it.

    Raises:
        InvalidInput: it is neither.
    """

    def __init__(self, folder: Path) -> None:
        # As it was named, so that a link is followed anew each time; behind .. a path's last part is no name.
        self._folder = folder.resolve() if ".." in folder.parts else folder.absolute()
        self._alone = (folder / _STUDENT).is_file()
        self._lock = threading.Lock()
        self._hashed: dict[Path, _Hashed] = {}
        if not self.names():
            raise InvalidInput(f"{folder} is no student's folder, and has none in it: no {_STUDENT} there.")
        if not any((self._top(name) / file).is_file() for name in self.names() for file in FILES.values()):
            raise InvalidInput(
                f"No student in {folder} has an ONNX file to answer with; `limbeck download --format onnx` fetches it."
            )
        self.storage = LocalStorage(self._folder, read_only=True)

    def names(self) -> list[str]:
        """The students that there are now."""
        if self._alone:
            return [self._folder.name]
        return sorted(path.parent.name for path in self._folder.glob(f"*/{_STUDENT}"))

    def find(self, name: str) -> Found:
        names = self.names()
        if name not in names:
            raise NotFound(f"There is no student {name!r} in {self._folder}; it has: {', '.join(names)}.")
        files = tuple(self._files(self._top(name)))
        # Its content is its id: what is loaded of the student before must not answer for the one that replaced it.
        content = hashlib.sha256("".join(f"{one.path}\n{one.sha256}\n" for one in files).encode())
        return f"sha256:{content.hexdigest()}", files

    def _top(self, name: str) -> Path:
        return self._folder if self._alone else self._folder / name

    def ping(self) -> None:
        if not self._folder.is_dir():
            raise Unavailable(f"The folder {self._folder} is gone.")

    def _files(self, top: Path) -> Iterator[StoredFile]:
        """What a predictor may need of the student in the folder ``top``."""
        root, real = self._folder.resolve(), top.resolve()
        if real.is_relative_to(root):  # so that an alias that is switched now changes nothing of what was found
            top = self._folder / real.relative_to(root)
        sides = dict.fromkeys((*SIDE_FILES, *IMAGE_SIDE_FILES))
        wanted = [top / name for name in sides] + sorted((top / _GRAPHS).rglob("*"))
        for path in wanted:
            if path.is_file():
                inside, key = (path.relative_to(start).as_posix() for start in (top, self._folder))
                yield StoredFile(inside, key, path.stat().st_size, self._sha256(path))

    def _sha256(self, path: Path) -> str:
        """Read once; again when size, time or file are others."""
        real, facts = path.resolve(), path.stat()
        stamp = facts.st_ino, facts.st_size, facts.st_mtime_ns
        with self._lock:
            known = self._hashed.get(real)
        if known is None or known.stamp != stamp:
            with real.open("rb") as content:
                known = _Hashed(stamp, hashlib.file_digest(content, "sha256").hexdigest())
            with self._lock:
                self._hashed[real] = known
        return known.sha256
