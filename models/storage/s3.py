"""Objects in a bucket of S3, or of a store that speaks its language (MinIO, Ceph, R2, …)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from limbeck.errors import NotFound, StorageFull, Unavailable
from models.storage.base import Entry, Storage, Stored, Watch, checked, out_of_room, read_hashed, unwatched

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

_PIECE = 8 * 1024 * 1024
#: S3 takes 10,000 parts in one upload.
_MOST_PARTS = 9_000
#: With the parts' size this bounds the memory of an upload.
_PARTS_AT_ONCE = 4
_FULL = ("StorageFull", "QuotaExceeded", "EntityTooLarge", "507 Insufficient Storage")


class S3Storage(Storage):
    """A bucket. Large files go up in parts, and down in ranges, so that no single request has to last long.

    Parts of an upload that was cut off stay hidden in the bucket until its lifecycle rule
    (``AbortIncompleteMultipartUpload``) removes them.

    Args:
        endpoint: of a store that is not AWS; ``http://`` is allowed.
        public_endpoint: of the same store for those who are given signed URLs; default: ``endpoint``.
        access_key_id, secret_access_key: default: as the AWS tools find them.
    """

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint: str | None = None,
        public_endpoint: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        config: S3Config = {"region": region}
        if access_key_id is not None and secret_access_key is not None:
            config["access_key_id"] = access_key_id
            config["secret_access_key"] = secret_access_key
        self._store = _client(bucket, prefix, endpoint, config)
        # A signature is of the host, too: a URL whose host is replaced afterwards is refused.
        self._signing = self._store if public_endpoint is None else _client(bucket, prefix, public_endpoint, config)

    def put_file(self, path: Path, key: str, *, move: bool = False, watch: Watch = unwatched) -> Stored:
        digest = hashlib.sha256()
        size = path.stat().st_size
        pieces = read_hashed(path, digest, watch)
        try:
            with _translated(key):
                if size <= _PIECE:
                    obstore.put(self._store, checked(key), b"".join(pieces), use_multipart=False)
                else:
                    part = max(_PIECE, -(-size // _MOST_PARTS))
                    obstore.put(self._store, checked(key), pieces, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)
        except NotFound as error:  # an object that is put is never missing
            raise Unavailable(f"There is no bucket to put {key!r} into: LIMBECK_STORAGE_URL names none.") from error
        if move:
            path.unlink()
        return Stored(key, size, digest.hexdigest())

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        size = self.size(key)
        return self._pieces(key, start, size if end is None else min(end, size))

    def local_path(self, key: str) -> Path | None:
        return None

    def size(self, key: str) -> int:
        with _translated(key):
            return obstore.head(self._store, checked(key))["size"]

    def delete(self, keys: Iterable[str]) -> None:
        doomed = [checked(key) for key in keys]
        if doomed:
            with _translated(doomed[0]):
                obstore.delete(self._store, doomed)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        with _translated(prefix):
            for batch in obstore.list(self._store, checked(prefix) if prefix else None, chunk_size=1000):
                for item in batch:
                    yield Entry(item["path"], item["size"], item["last_modified"])

    def signed_url(self, key: str, seconds: float) -> str | None:
        with _translated(key):
            return obstore.sign(self._signing, "GET", checked(key), timedelta(seconds=seconds))

    def discard_unfinished(self, before: datetime) -> int:
        return 0

    def _pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        for first in range(start, end, _PIECE):
            with _translated(key):
                piece = obstore.get_range(self._store, key, start=first, end=min(first + _PIECE, end)).to_bytes()
            yield piece


def _client(bucket: str, prefix: str, endpoint: str | None, config: S3Config) -> S3Store:
    client: ClientConfig = {
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        "connect_timeout": timedelta(seconds=5),
        "timeout": timedelta(seconds=120),
    }
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config if endpoint is None else {**config, "endpoint": endpoint},
        client_options=client,
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)},
    )


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """obstore's errors as Limbeck's."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"The storage has no {key!r}.") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise Unavailable(f"The bucket refuses LIMBECK_S3_ACCESS_KEY_ID: {_first_line(error)}") from error
    except BaseError as error:
        if any(sign in str(error) for sign in _FULL):
            raise StorageFull(f"The bucket takes no more bytes (storing {key}).") from error
        raise Unavailable(f"The bucket does not answer: {_first_line(error)}") from error
    except OSError as error:
        raise out_of_room(error, f"storing {key}") from error


def _first_line(error: BaseError) -> str:
    return str(error).split("\n", 1)[0][:300]
