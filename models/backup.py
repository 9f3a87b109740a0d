"""Backup and restore of the embedded folder: the SQLite database and the stored files that it names, in one ``.tar``.

Backing up needs no standstill. With PostgreSQL and S3 their own tools do this.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import make_url
from sqlalchemy.orm import Session

from limbeck.errors import Conflict, InvalidArchive, InvalidInput, NotFound
from models import schema
from models.db import Database
from models.engine import open_engine
from models.repository import jobs
from models.retention import referenced_keys
from models.settings import Settings
from models.storage import LocalStorage, require_storage
from models.storage.base import CHUNK, checked

_FORMAT = 1
_MANIFEST = "manifest.json"
_DATABASE = "limbeck.db"
_STORAGE = "storage/"


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds."""

    format: int
    schema: str  #: the database's revision
    objects: int
    bytes: int  #: of the objects
    missing: tuple[str, ...]  #: keys that rows name and the storage did not have, or did not have any more


def backup(settings: Settings, target: Path) -> BackupReport:
    """Write ``target``, a ``.tar`` that only its owner may read; it appears once it is whole.

    Raises:
        InvalidInput: the settings are not those of an embedded folder.
        NotFound: there is no database.
    """
    source, folder = _database_file(settings), _storage_folder(settings)
    if not source.is_file():
        raise NotFound(f"There is no database {source}.")
    storage = LocalStorage(folder)
    with _beside(target) as work, storage.unlisted() as held:
        copy = work / _DATABASE
        # A running job's checkpoint is replaced every minute, perhaps while its row is being copied.
        _hold(storage, (entry.key for entry in storage.list("jobs")), held)
        _copy_database(source, copy)
        revision, keys = _contents(copy)
        _hold(storage, sorted(keys, key=lambda key: not key.startswith("jobs/")), held)
        there = {key: held / key for key in keys if (held / key).is_file()}
        size = sum(path.stat().st_size for path in there.values())
        report = BackupReport(_FORMAT, revision, len(there), size, tuple(sorted(set(keys) - there.keys())))
        part = work / "backup.tar"
        part.touch(mode=0o600)
        with tarfile.open(part, "w") as archive:
            _add_manifest(archive, report)
            archive.add(copy, _DATABASE)
            for key, path in there.items():
                archive.add(path, _STORAGE + key)
        part.replace(target)
    return report


def restore(settings: Settings, archive: Path) -> BackupReport:
    """Fill the embedded folder of ``settings`` from a backup, and bring its schema up to date.

    Jobs that ran when the backup was written are back in the queue; that costs them no attempt.

    Raises:
        Conflict: the folder is not empty, or a newer Limbeck has written the backup.
        InvalidArchive: it is not a whole backup; the folder is left as it was.
        NotFound: there is no such file.
    """
    database, storage = _database_file(settings), _storage_folder(settings)
    if not archive.is_file():
        raise NotFound(f"There is no backup {archive}.")
    for folder in (settings.data_dir, database.parent, storage):
        if folder.is_dir() and any(folder.iterdir()):
            raise Conflict(f"{folder} is not empty; a backup is restored into an empty folder only.")
    with _beside(settings.data_dir) as work:
        report = _unpack(archive, work)
        database.parent.mkdir(parents=True, exist_ok=True)
        storage.parent.mkdir(parents=True, exist_ok=True)
        if storage.is_dir():
            storage.rmdir()
        shutil.move(work / "storage", storage)
        shutil.move(work / _DATABASE, database)
    restored = Database(settings)
    try:
        restored.migrate()
        with restored.session() as session:
            jobs.requeue_all(session, "The job was restored from a backup.")
    finally:
        restored.dispose()
    return report


def _database_file(settings: Settings) -> Path:
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise InvalidInput("Only the embedded database (SQLite) is backed up by this; for PostgreSQL use pg_dump.")
    return Path(url.database)


def _storage_folder(settings: Settings) -> Path:
    require_storage(settings)
    url = urlsplit(settings.storage_url)
    if url.scheme != "file":
        raise InvalidInput(
            "Only an embedded storage (a folder) is backed up by this; for S3 use the bucket's own tools."
        )
    return Path(unquote(url.path))


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder on the same file system as ``path``, for what is not finished; removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy_database(source: Path, copy: Path) -> None:
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as live,
        closing(sqlite3.connect(copy)) as own,
    ):
        live.backup(own)
        # One file, without a log beside it; migrating switches it back.
        own.execute("PRAGMA journal_mode = DELETE")


def _contents(copy: Path) -> tuple[str, list[str]]:
    """The revision of a copied database, and the keys that it names."""
    engine = open_engine(f"sqlite:///{copy}")
    try:
        with Session(engine) as session:
            connection = session.connection()
            revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
            return revision, sorted(referenced_keys(session))
    finally:
        engine.dispose()


def _hold(storage: LocalStorage, keys: Iterable[str], folder: Path) -> None:
    """Give the objects second names below ``folder``, where no delete reaches them; what has gone is passed over."""
    for key in keys:
        path, place = storage.local_path(key), folder / key
        if path is None or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except FileNotFoundError:
            continue
        except OSError:  # no hard links here, or the storage is a file system of its own
            with suppress(FileNotFoundError):
                shutil.copyfile(path, place)


def _add_manifest(archive: tarfile.TarFile, report: BackupReport) -> None:
    content = json.dumps(asdict(report)).encode()
    entry = tarfile.TarInfo(_MANIFEST)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _unpack(path: Path, work: Path) -> BackupReport:
    """The backup's files in ``work``, checked."""
    (work / "storage").mkdir()
    found = 0
    try:
        with tarfile.open(path, "r:") as archive:
            report = _read_manifest(archive)
            for entry in archive:
                _extract(archive, entry, work / _place_of(entry))
                found += entry.name.startswith(_STORAGE)
    except tarfile.TarError as error:
        raise InvalidArchive(f"{path} is not a whole backup: {error}") from error
    if found != report.objects or not (work / _DATABASE).is_file():
        raise InvalidArchive(f"{path} is not a whole backup: it has {found} of {report.objects} files.")
    with closing(sqlite3.connect(work / _DATABASE)) as database:
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        raise InvalidArchive(f"The database in {path} is damaged: {verdict}")
    return report


def _read_manifest(archive: tarfile.TarFile) -> BackupReport:
    first = archive.next()
    content = archive.extractfile(first) if first is not None and first.name == _MANIFEST else None
    if content is None:
        raise InvalidArchive("This is no backup of Limbeck: it does not begin with a manifest.")
    try:
        fields = json.loads(content.read())
        report = BackupReport(**(fields | {"missing": tuple(fields["missing"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArchive(f"The backup's manifest cannot be read: {error}") from error
    if report.format != _FORMAT or not schema.knows(report.schema):
        raise Conflict(
            f"A newer Limbeck has written the backup: it has format {report.format} and schema {report.schema}; "
            f"this one knows format {_FORMAT} and schemas up to {schema.head()}."
        )
    return report


def _place_of(entry: tarfile.TarInfo) -> str:
    known = entry.name in (_MANIFEST, _DATABASE) or entry.name.startswith(_STORAGE)
    if not (known and entry.isreg()):
        raise InvalidArchive(f"The backup holds {entry.name!r}, which is none of a backup's files.")
    if entry.name.startswith(_STORAGE):
        checked(entry.name.removeprefix(_STORAGE))
    return entry.name


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo, place: Path) -> None:
    content = archive.extractfile(entry)
    assert content is not None  # _place_of lets regular files through only
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("wb") as file:
        shutil.copyfileobj(content, file, CHUNK)
