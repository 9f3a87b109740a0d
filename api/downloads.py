"""Models as ``.tar.gz``: the same bytes every time, so that a download which broke off can go on.

An archive is packed once and kept in the scratch folder; the least recently asked for goes when there are too many.
Packing it again gives the same bytes: entries are sorted, and carry the model's date and no owner.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args
from weakref import WeakValueDictionary

from limbeck.errors import NotFound
from limbeck.formats import FILES
from limbeck.formats import Format as Export
from limbeck.scorecard import HARD_SAMPLES
from models.model import Model, ModelFile
from models.storage import Storage

Format = Literal["safetensors", Export]
FORMATS: tuple[Format, ...] = get_args(Format)

#: Goes into an archive's cache name; raise it when the layout changes.
_LAYOUT = 1
_CHUNK = 1 << 18
#: No archive is written to for so long without an end.
_STALE_SECONDS = 6 * 3600
#: Weights hardly compress: more effort costs seconds and saves nothing.
_COMPRESSION = 1


@dataclass(frozen=True, slots=True)
class Archive:
    path: Path
    bytes: int
    sha256: str


def formats_of(paths: Collection[str]) -> list[Format]:
    """Which formats a model with these files can be had in."""
    found: list[Format] = [name for name, graph in FILES.items() if graph in paths]
    weights: list[Format] = ["safetensors"] if any(_is_weights(path) for path in paths) else []
    return weights + found


def files_of(files: Sequence[ModelFile], form: Format) -> list[ModelFile]:
    """The files of one format, sorted by path.

    Every format has what lies beside the weights (``config.json``, the tokenizer, ``limbeck.json``, the model card).
    ``safetensors`` adds ``model.safetensors``; the others add their graph below ``onnx/``. The table of hard samples is
    in none: it holds texts of the data set, and a model may go where these must not.
    """
    graph = None if form == "safetensors" else FILES[form]

    def belongs(path: str) -> bool:
        if path in HARD_SAMPLES:
            return False
        if path.startswith("onnx/"):
            # A graph of more than 2 GB keeps its weights beside it: model.onnx_data, model.onnx.data
            # The graphs of a student with early exits lie in a folder beside it.
            return graph is not None and (path.startswith(graph) or (form == "onnx" and path.startswith("onnx/exits/")))
        return form == "safetensors" or not _is_weights(path)

    return sorted((file for file in files if belongs(file.path)), key=lambda file: file.path)


class Downloads:
    """The packed archives of one process's scratch folder.

    Args:
        folder: where they are kept; made when needed.
        limit: bytes that they may take together; a single one may be larger.
    """

    def __init__(self, storage: Storage, folder: Path, limit: int) -> None:
        self._storage = storage
        self._folder = folder
        self._limit = limit
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()  # of those that are asked for
        self._guard = threading.Lock()

    def archive(self, model: Model, files: Sequence[ModelFile], form: Format) -> Archive:
        """The model in one format; packed now if it was not yet. Another one's packing may remove it at once, where
        there are too many: whoever does not find it asks again.

        Raises:
            NotFound: the model has no such format; the message names those that it has.
        """
        available = formats_of([file.path for file in files])
        if form not in available:
            raise NotFound(f"Model {model.id} cannot be had as {form}; it has: {', '.join(available) or 'no weights'}.")
        files = files_of(files, form)
        stem = f"{model.id}.{form}.{_digest(files)}"
        with self._guard:
            packing = self._locks.setdefault(stem, threading.Lock())
        with packing:
            found = self._find(stem)
            if found is None:
                found = self._pack(stem, model, files)
                self._evict(found)
        return found

    def forget(self, model_id: str) -> None:
        """Drop the archives of a model that was deleted."""
        for path in self._folder.glob(f"{model_id}.*.tar.gz"):
            path.unlink(missing_ok=True)

    def _discard_unfinished(self) -> None:
        """Remove what processes that were killed have not packed to its end."""
        for path in self._folder.glob(".*.*"):
            with suppress(FileNotFoundError):  # another one has come to its end, or is discarding as well
                if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()

    def _find(self, stem: str) -> Archive | None:
        for path in self._folder.glob(f"{stem}.*.tar.gz"):
            with suppress(FileNotFoundError):  # another one's packing, or a deletion, has just removed it
                os.utime(path)
                size = path.stat().st_size
                return Archive(path, size, path.name.removeprefix(f"{stem}.").removesuffix(".tar.gz"))
        return None

    def _pack(self, stem: str, model: Model, files: Sequence[ModelFile]) -> Archive:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._discard_unfinished()
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=f".{stem}.", delete=False) as out:
            try:
                hashed = _Hashing(out)
                with gzip.GzipFile("", "wb", _COMPRESSION, hashed, mtime=0) as packed:
                    self._write(packed, model, files)
                out.flush()
                size = out.tell()
                path = self._folder / f"{stem}.{hashed.hexdigest()}.tar.gz"
                os.replace(out.name, path)
            except BaseException:
                Path(out.name).unlink(missing_ok=True)
                raise
        return Archive(path, size, hashed.hexdigest())

    def _write(self, packed: gzip.GzipFile, model: Model, files: Sequence[ModelFile]) -> None:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for file in files:
                entry = tarfile.TarInfo(f"{model.id}/{file.path}")
                entry.size, entry.mtime = file.bytes, int(model.created_at.timestamp())
                with io.BufferedReader(_Chunks(self._storage.open(file.key)), _CHUNK) as content:
                    tar.addfile(entry, content)

    def _evict(self, keep: Archive) -> None:
        archives = []
        for path in self._folder.glob("*.tar.gz"):
            with suppress(FileNotFoundError):  # others' packing comes to its end, and evicts as well
                facts = path.stat()
                archives.append((facts.st_mtime, facts.st_size, path))
        total = keep.bytes
        for _, size, path in sorted(archives, reverse=True):
            if path == keep.path:
                continue
            total += size
            if total > self._limit:
                path.unlink(missing_ok=True)


def read_file(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a file; it is opened at once, so that it may be removed while it is read."""
    return _read(path.open("rb"), start, end)


def _read(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (chunk := file.read(min(_CHUNK, end - start))):
            start += len(chunk)
            yield chunk


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".safetensors.index.json"))


def _digest(files: Sequence[ModelFile]) -> str:
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(f"{_LAYOUT}\n{lines}".encode()).hexdigest()[:16]


class _Hashing:
    """A file to write to that hashes what goes through."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Chunks(io.RawIOBase):
    """The chunks of a storage as a file, which is what tarfile reads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
