"""Where files are: a folder, or a bucket. ``open_storage`` chooses by the settings' ``storage_url``."""

from models.storage.base import Entry, Storage, Stored, Watch, unwatched
from models.storage.local import LocalStorage
from models.storage.opening import open_storage, require_storage

__all__ = ["Entry", "LocalStorage", "Storage", "Stored", "Watch", "open_storage", "require_storage", "unwatched"]
