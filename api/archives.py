"""Unpacking archives that strangers upload.

Nothing in an archive is believed: names, kinds and sizes are checked entry by entry, and bytes are counted as they
come out, so that a small file which unpacks to a huge one is stopped at the limit and not after it.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from limbeck.errors import InvalidArchive, Problem

MAX_FILES = 1_000
MAX_DEPTH = 8
MAX_PATH = 400

_CHUNK = 1 << 20
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".mar"})
_CLUTTER = frozenset({"__MACOSX", ".git", ".DS_Store", ".cache"})
_ZIP_END, _ZIP64_LOCATOR = b"PK\x05\x06", b"PK\x06\x07"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold."""

    bytes: int
    files: int = MAX_FILES


def unpack(archive: Path, filename: str, folder: Path, limits: Limits) -> Path:
    """Unpack a ``.zip`` or ``.tar.gz`` into ``folder``, which has to be there and empty.

    Args:
        archive: the file on disk.
        filename: what its sender called it; for messages only, the content tells what it is.

    Returns:
        The folder that holds the files: ``folder``, or the single folder on the archive's top level.

    Raises:
        InvalidArchive: broken, hostile, or over the limits. What was unpacked so far is for the caller to remove.
    """
    with archive.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(b"PK"):
        opened = _zip(archive)
    elif magic.startswith(b"\x1f\x8b"):
        opened = _tar_gz(archive, limits)
    else:
        raise _refused(f"{filename!r} is neither a .zip nor a .tar.gz file")
    try:
        _write_all(opened, folder, limits)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, struct.error) as error:
        raise _refused(f"{filename!r} is broken: {error}") from error
    except (NotImplementedError, RuntimeError) as error:  # zipfile: a compression it lacks; a password
        raise _refused(f"{filename!r} cannot be read: {error}") from error
    return _root(folder)


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    content: IO[bytes]


def _write_all(entries: Iterator[_Entry], folder: Path, limits: Limits) -> None:
    left, files = limits.bytes, 0
    for entry in entries:
        path = _safe(entry.name)
        if path is None:
            continue
        files += 1
        if files > limits.files:
            raise _refused(f"it holds more than {limits.files} files")
        left -= _write(entry, folder / path, left, limits.bytes)
    if files == 0:
        raise _refused("it holds no files")


def _write(entry: _Entry, target: Path, left: int, limit: int) -> int:
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        out = target.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _refused(f"{entry.name!r} stands in it twice, or is both a file and a folder") from error
    with out:
        while chunk := entry.content.read(_CHUNK):
            if not written and _is_pickle(chunk):
                raise _pickle(entry.name)
            written += len(chunk)
            if written > left:
                raise _refused(f"it unpacks to more than {limit} bytes")
            out.write(chunk)
    return written


def _safe(name: str) -> PurePosixPath | None:
    """The entry's path below the target folder; none for what operating systems leave behind.

    Raises:
        InvalidArchive: the path leads elsewhere, or names what is not taken.
    """
    path = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or not name.isprintable():
        raise _refused(f"{name!r} is not a usable file name")
    if path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":"):
        raise _refused(f"{name!r} leads out of the archive")
    if len(name) > MAX_PATH or len(path.parts) > MAX_DEPTH or any(len(part.encode()) > 255 for part in path.parts):
        raise _refused(
            f"{name[:60]!r}… is too long or lies too deep (at most {MAX_PATH} characters, {MAX_DEPTH} levels)"
        )
    if not path.parts or _CLUTTER & set(path.parts) or path.name.startswith("._"):
        return None
    if path.suffix.lower() in _PICKLES:
        raise _pickle(name)
    return path


def _is_pickle(beginning: bytes) -> bool:
    # torch.save writes a zip of pickles; a bare pickle begins with its protocol, 2 to 5.
    return beginning.startswith(b"PK\x03\x04") or (beginning[:1] == b"\x80" and beginning[1:2] in b"\x02\x03\x04\x05")


def _zip(archive: Path) -> Iterator[_Entry]:
    _check_directory(archive)
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            if info.is_dir():
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise _special(info.filename)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refused(f"{info.filename!r} is packed by a method other than deflate")
            with opened.open(info) as content:
                yield _Entry(info.filename, content)


def _check_directory(archive: Path) -> None:
    """Refuse a central directory that would fill the memory when it is read, which zipfile does at once."""
    with archive.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 66_000))
        tail = file.read()
    at = tail.rfind(_ZIP_END)
    if at < 0 or len(tail) < at + 22:
        raise _refused("it is broken: the zip directory is missing")
    entries, size = struct.unpack_from("<HI", tail, at + 10)
    if entries > 4 * MAX_FILES or size > 4 * MAX_FILES * 1_000 or tail[max(0, at - 20) : at].startswith(_ZIP64_LOCATOR):
        raise _refused(f"it holds more than {MAX_FILES} files, or is a zip64 file; pack it as a .tar.gz")


class _Bounded(io.RawIOBase):
    """A gzip stream that refuses to go past the limit, also where tarfile skips, and to be read in huge pieces.

    tarfile reads an extended header (a long name, say) whole, whatever size it claims.
    """

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream = stream
        self._limit = limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        _within(offset, self._limit)
        return self._stream.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise _refused("it holds a header of more than 1 MiB")
        data = self._stream.read(size)
        _within(self._stream.tell(), self._limit)
        return data


def _within(position: int, limit: int) -> None:
    if position > limit:
        raise _refused(f"it unpacks to more than {limit} bytes")


def _tar_gz(archive: Path, limits: Limits) -> Iterator[_Entry]:
    most = limits.bytes + 8_192 * (limits.files + 1)  # headers and padding
    with gzip.open(archive) as stream, _opened(_Bounded(stream, most)) as opened:
        for member in opened:
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise _special(member.name)
            content = opened.extractfile(member)
            assert content is not None  # only links and special files have none
            yield _Entry(member.name, content)
        while stream.read(_CHUNK):  # tarfile takes a damaged header for the end; gzip's checksum stands at the very end
            _within(stream.tell(), most)


@contextmanager
def _opened(stream: _Bounded) -> Iterator[tarfile.TarFile]:
    with tarfile.open(fileobj=stream, mode="r:", errors="strict", encoding="utf-8") as opened:
        try:
            yield opened
        except UnicodeDecodeError as error:
            raise _refused("it holds a file name that is not UTF-8") from error


def _root(folder: Path) -> Path:
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


def _refused(reason: str) -> InvalidArchive:
    message = f"The archive cannot be taken: {reason}."
    return InvalidArchive(message, (Problem("/file", reason),))


def _special(name: str) -> InvalidArchive:
    return _refused(f"{name!r} is a link, a device or another special file; only plain files are taken")


def _pickle(name: str) -> InvalidArchive:
    return _refused(
        f"{name!r} is a pickle, which runs code when it is read; save the weights as safetensors "
        "(model.save_pretrained(folder) does) and leave the other files out"
    )
