"""From settings to a storage."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from limbeck.errors import InvalidInput, Unavailable
from models.settings import Settings
from models.storage.base import Storage
from models.storage.local import LocalStorage
from models.storage.s3 import S3Storage


def open_storage(settings: Settings, *, read_only: bool = False) -> Storage:
    """The storage that ``storage_url`` names; a folder is made where there is none.

    Args:
        read_only: nothing will be put there, and no folder is made.

    Raises:
        InvalidInput: neither ``file:///folder`` nor ``s3://bucket/prefix``.
        Unavailable: the folder cannot be made.
    """
    require_storage(settings)
    url = urlsplit(settings.storage_url)
    if url.scheme == "file":
        folder = Path(unquote(url.path))
        try:
            return LocalStorage(folder, read_only=read_only)
        except OSError as error:
            raise Unavailable(
                f"The folder of LIMBECK_STORAGE_URL cannot be used: {folder}: {error.strerror}"
            ) from error
    return S3Storage(
        url.netloc,
        prefix=url.path.strip("/"),
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        region=settings.s3_region,
        access_key_id=_plain(settings.s3_access_key_id),
        secret_access_key=_plain(settings.s3_secret_access_key),
    )


def require_storage(settings: Settings) -> None:
    """For everything that starts servers, before it does: one that cannot open its storage ends, and is started again.

    Raises:
        InvalidInput: neither ``file:///folder`` nor ``s3://bucket/prefix``.
    """
    url = urlsplit(settings.storage_url)
    # What stands behind two slashes is a host: file://data/storage would be the folder /storage.
    folder = url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/")
    bucket = url.scheme == "s3" and url.netloc and "@" not in url.netloc
    if (folder or bucket) and not url.query and not url.fragment:
        return
    given = "has an @ in its host" if "@" in url.netloc else f"is {settings.storage_url!r}"  # it may hold a password
    raise InvalidInput(
        f"LIMBECK_STORAGE_URL {given}; allowed: file:///absolute/folder or s3://bucket/prefix, a # or ? in them "
        "as %23 or %3F"
    )


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
