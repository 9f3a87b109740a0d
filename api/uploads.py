"""Receiving ``multipart/form-data`` straight to disk, counted while it comes."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from limbeck.errors import InvalidInput, Problem, StorageFull, TooLarge
from models.scratch import held, sweep

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_BUFFER = 1 << 20
_MAX_FIELD = 10_000


@dataclass(frozen=True, slots=True)
class UploadedFile:
    path: Path
    filename: str  #: as its sender called it
    bytes: int


@dataclass(slots=True)
class Upload:
    """A form that has come in whole."""

    folder: Path  #: everything lies below; gone when the context ends
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, UploadedFile] = field(default_factory=dict)


@asynccontextmanager
async def receive(
    request: Request, scratch: Path, *, files: Collection[str], fields: Collection[str], limit: int
) -> AsyncIterator[Upload]:
    """The request's form, its files on disk until the context ends.

    Args:
        scratch: where a temporary folder is made.
        files: names of the parts that are files; the first one is required.
        fields: names of the parts that are text.
        limit: bytes of the whole body.

    Raises:
        TooLarge: as soon as the limit is passed, or at once where Content-Length says so.
        InvalidInput: no form, a part that is not known, a required file that is missing.
        StorageFull: the disk took no more.
    """
    await asyncio.to_thread(sweep, scratch)
    with working_folder(scratch) as folder:
        form = _Form(folder, frozenset(files), frozenset(fields))
        try:
            await _read(request, form, limit)
        finally:
            form.close()
        required = next(iter(files))
        if required not in form.upload.files:
            raise _wrong(required, "this file is required")
        yield form.upload


@contextmanager
def working_folder(scratch: Path) -> Iterator[Path]:
    """A new folder below ``scratch``, removed with everything in it.

    Raises:
        StorageFull: in place of the operating system's error when the disk took no more.
    """
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="upload-", dir=scratch))
        with held(folder):
            yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("The server's disk is full; nothing was stored.") from error
        raise


async def _read(request: Request, form: _Form, limit: int) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidInput("Send the files as multipart/form-data, for example with: curl -F train=@train.csv …")
    request.scope["body_limit"].lift()  # counted here
    received = pending = 0
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        async for chunk in request.stream():
            received += len(chunk)
            pending += len(chunk)
            if received > limit:
                raise _too_large(limit)
            parser.write(chunk)
            if pending >= _BUFFER:
                await asyncio.to_thread(form.flush)
                pending = 0
        await asyncio.to_thread(form.flush)
        parser.finalize()
    except FormParserError as error:
        raise InvalidInput(f"The form is broken: {error}.") from error
    except ClientDisconnect as error:
        raise InvalidInput("The upload broke off before its end.") from error
    if not form.complete:
        raise InvalidInput("The form is broken: it ends before its last boundary.")


class _Form:
    """The parser's callbacks. They only collect; ``flush`` writes, in a thread, so that a slow disk blocks nobody."""

    def __init__(self, folder: Path, files: frozenset[str], fields: frozenset[str]) -> None:
        self.upload = Upload(folder)
        self.complete = False
        self._files, self._fields = files, fields
        self._header, self._value = b"", b""
        self._disposition = b""
        self._name, self._filename = "", ""
        self._text: bytearray | None = None
        self._out: IO[bytes] | None = None
        self._size = 0
        self._pending: list[tuple[IO[bytes], bytes]] = []
        self._open: list[IO[bytes]] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._ends,
        }

    def flush(self) -> None:
        for out, data in self._pending:
            out.write(data)
        self._pending.clear()
        for out in self._open:
            out.flush()

    def close(self) -> None:
        for out in self._open:
            out.close()

    def _part_begins(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name in self.upload.files or self._name in self.upload.fields:
            raise _wrong(self._name, "this part was sent twice")
        if self._name in self._files:
            self._begin_file(options.get(b"filename"))
        elif self._name in self._fields:
            self._text = bytearray()
        else:
            allowed = ", ".join(sorted(self._files | self._fields))
            raise _wrong(self._name, f"there is no such part; allowed: {allowed}")

    def _begin_file(self, filename: bytes | None) -> None:
        if not filename:
            raise _wrong(
                self._name, f"send this part as a file with a name, for example: curl -F {self._name}=@data.csv"
            )
        self._filename = filename.decode("utf-8", "replace")
        self._out = (self.upload.folder / f"{self._name}.upload").open("wb")
        self._open.append(self._out)
        self._size = 0

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._out is not None:
            self._pending.append((self._out, data[start:end]))
            self._size += end - start
        elif self._text is not None:
            self._text += data[start:end]
            if len(self._text) > _MAX_FIELD:
                raise _wrong(self._name, f"a text part has at most {_MAX_FIELD} bytes")

    def _part_ends(self) -> None:
        if self._out is not None:
            self.upload.files[self._name] = UploadedFile(Path(self._out.name), self._filename, self._size)
        elif self._text is not None:
            self.upload.fields[self._name] = self._decoded(bytes(self._text))
        self._out = self._text = None

    def _decoded(self, text: bytes) -> str:
        try:
            value = text.decode()
        except UnicodeDecodeError as error:
            raise _wrong(self._name, "this text is not UTF-8") from error
        if "\0" in value:
            raise _wrong(self._name, "this text holds a NUL character")
        return value

    def _ends(self) -> None:
        self.complete = True


def name_of(received: Upload, part: str) -> str:
    """The form's ``name``, or else the name of a file without its endings.

    Raises:
        InvalidInput: it is too long.
    """
    name = received.fields.get("name", "").strip()
    if len(name) > 200:
        raise _wrong("name", f"found {len(name)} characters; allowed: at most 200")
    return name or PurePosixPath(received.files[part].filename).name.split(".")[0][:200] or part


def _wrong(part: str, detail: str) -> InvalidInput:
    return InvalidInput(f"The form is not valid: {part}: {detail}.", (Problem(f"/{part}", detail),))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The upload is larger than this server takes: at most {limit} bytes (LIMBECK_MAX_UPLOAD_BYTES).")
