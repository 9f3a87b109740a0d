"""From settings to a storage."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from limbeck.errors import InvalidInput
from models.settings import Settings
from models.storage.base import Storage
from models.storage.local import LocalStorage
from models.storage.s3 import S3Storage


def open_storage(settings: Settings) -> Storage:
    """The storage that ``storage_url`` names; a folder is made where there is none.

    Raises:
        InvalidInput: neither ``file:///folder`` nor ``s3://bucket/prefix``.
    """
    require_storage(settings)
    url = urlsplit(settings.storage_url)
    if url.scheme == "file":
        return LocalStorage(Path(unquote(url.path)))
    return S3Storage(
        url.netloc,
        prefix=url.path.strip("/"),
        endpoint=settings.s3_endpoint,
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
    if (url.scheme == "file" and url.path.startswith("/")) or (url.scheme == "s3" and url.netloc):
        return
    raise InvalidInput(
        f"LIMBECK_STORAGE_URL is {settings.storage_url!r}; allowed: file:///absolute/folder or s3://bucket/prefix"
    )


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
