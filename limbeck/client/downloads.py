"""A download that goes on where it broke off, and that is what its ETag says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from limbeck.client.connection import Connection
from limbeck.errors import InvalidArchive, Unavailable

_SHA256 = re.compile(r'"([0-9a-f]{64})"')

#: Before the first byte of its first download, the server packs the model.
_PACKING = 300.0

#: Called with the bytes on disk and the bytes of the whole, as far as the server told them.
OnBytes = Callable[[int, int | None], None]


class Download:
    """One file on its way to ``target``.

    What has come lies beside it as ``.{name}.{sha256}.part``: the hash in the name keeps two versions of a model from
    being glued together, also when a later process goes on.
    """

    def __init__(
        self, connection: Connection, path: str, params: Mapping[str, Any], target: Path, on_bytes: OnBytes | None
    ) -> None:
        self._connection = connection
        self._path = path
        self._params = params
        self._target = target
        self._on_bytes = on_bytes or (lambda done, total: None)

    def run(self) -> Path:
        """Fetch, check the sha256, and move into place.

        Raises:
            Unavailable: the connection broke off and nothing more came over all retries; a later run goes on.
            InvalidArchive: what came is not what the server hashed.
        """
        self._target.parent.mkdir(parents=True, exist_ok=True)
        most, fruitless = self._on_disk(), 0
        while True:
            try:
                part = self._fetch()
                break
            except Unavailable:
                here = self._on_disk()
                most, fruitless = max(most, here), 0 if here > most else fruitless + 1
                if fruitless > self._connection.retries:
                    raise
                self._connection.pause(fruitless)
        self._verify(part)
        part.replace(self._target)
        return self._target

    def _fetch(self) -> Path:
        """One request: the rest of a part, or the whole."""
        part = self._part()
        headers = {"Accept-Encoding": "identity"}
        if part is not None and part.stat().st_size:
            headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": f'"{_hash_in(part)}"'}
        with self._connection.stream(
            self._path, headers=headers, params=dict(self._params), timeout=_PACKING
        ) as response:
            etag = _SHA256.fullmatch(response.headers.get("etag", ""))
            if response.status_code == 416 and part is not None:
                return part  # nothing is left to fetch; the hash will tell whether it is whole
            name = f".{self._target.name}.{etag[1] if etag else 'unhashed'}.part"
            going_on = response.status_code == 206 and part is not None and part.name == name
            if not going_on:
                self._forget()
            part = self._target.with_name(name)
            length = response.headers.get("content-length")
            with part.open("ab" if going_on else "wb") as out:
                total = out.tell() + int(length) if length else None
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    self._on_bytes(out.tell(), total)
        return part

    def _verify(self, part: Path) -> None:
        expected = _hash_in(part)
        if expected is None:
            return
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            part.unlink()
            raise InvalidArchive(
                f"The download of {self._path} is damaged: its sha256 is {found}, and the server said {expected}. "
                "Start it again."
            )

    def _parts(self) -> list[Path]:
        return sorted(self._target.parent.glob(f".{escape(self._target.name)}.*.part"))

    def _part(self) -> Path | None:
        return next((part for part in self._parts() if _hash_in(part)), None)

    def _on_disk(self) -> int:
        return sum(part.stat().st_size for part in self._parts())

    def _forget(self) -> None:
        for part in self._parts():
            part.unlink()


def _hash_in(part: Path) -> str | None:
    found = re.search(r"\.([0-9a-f]{64})\.part$", part.name)
    return found[1] if found else None
