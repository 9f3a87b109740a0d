"""Images in zip archives, as data sets of the hub have them: ``data/train.zip`` with ``<label>/picture.png`` inside.

``datasets`` takes the folder that the archive itself lies in for the label. Here nothing is unpacked to disk: what an
archive calls its files is a label and a caption, and never a path. How large they are is looked at before anything is
unpacked, as a few kilobytes can stand for terabytes.
"""

from __future__ import annotations

import itertools
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from limbeck.data.corpus import IMAGES
from limbeck.data.readers import UNPACKED_LIMIT
from limbeck.data.table import Table, fault
from limbeck.image_files import SPLIT_NAMES, SUFFIXES

#: Of one split.
MOST_IMAGES = 1_000_000
_TABLES = (".arrow", ".csv", ".gz", ".json", ".jsonl", ".parquet", ".tsv", ".zst")
#: What makes a zip that it is no data: notes of the machine that it was packed on.
_IGNORED = ("__MACOSX", "Thumbs.db")


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive."""

    archive: Path
    inside: zipfile.ZipInfo

    @property
    def place(self) -> PurePosixPath:
        """What it is called."""
        return PurePosixPath(self.inside.filename)

    @property
    def shown(self) -> str:
        """Archive and name, for messages."""
        return f"{self.archive.name}: {self.inside.filename}"


def archived_splits(folder: Path) -> dict[str, list[Member]]:
    """The files in a folder's archives by split, where there are images among them and no tables beside them.

    An archive's name says of which split it is; else the folders inside do; else it is ``train``.

    Raises:
        InvalidDataset: an archive is broken.
    """
    archives = sorted(folder.rglob("*.zip"))
    if any(path.suffix in _TABLES and path.name != "dataset_infos.json" for path in folder.rglob("*")):
        return {}
    found: dict[str, list[Member]] = {}
    for path in archives:
        named = _split_of(path.relative_to(folder).with_suffix("").parts[::-1])
        for member in _members(path, named or "train"):
            split = named or _split_of(member.place.parts[:-2]) or "train"
            found.setdefault(split, []).append(member)
    if any(member.place.suffix in _TABLES for members in found.values() for member in members):
        return {}  # labelled by a table in the archive, as datasets reads it
    images = any(_is_image(member) for members in found.values() for member in members)
    return found if images else {}


def archive_table(members: Sequence[Member], where: str, limit: int = UNPACKED_LIMIT, most: int = MOST_IMAGES) -> Table:
    """The images of one split, each with the folder that it lies in as its label.

    Args:
        where: the split, for messages.
        limit: bytes that they may unpack to.
        most: how many they may be.

    Raises:
        InvalidDataset: something else lies among them, there are too many, one is too large or broken.
    """
    _require_modest(members, where, limit, most)
    images = [
        {"bytes": data, "path": member.inside.filename}
        for member, data in zip(members, _unpacked(members, where), strict=True)
    ]
    return Table({"image": images, "label": [one.place.parent.name for one in members]}, len(images), task=IMAGES)


def _split_of(parts: Iterable[str]) -> str | None:
    words = (word for part in parts for word in re.split(r"[^a-z]+", part.lower()))
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _is_image(member: Member) -> bool:
    return member.place.suffix.lower() in SUFFIXES


def _members(path: Path, where: str) -> list[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [Member(path, one) for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise fault(where, f"{path.name} is no zip archive that can be read: {error}") from error
    return [one for one in found if not any(map(_hidden, one.place.parts))]


def _hidden(part: str) -> bool:
    return part in _IGNORED or (part.startswith(".") and part != "..")


def _require_modest(members: Sequence[Member], where: str, limit: int, most: int) -> None:
    from limbeck.runtime.images import MOST_BYTES

    if len(members) > most:
        raise fault(where, f"the archives hold {len(members):,} files; allowed: at most {most:,}")
    for member in members:
        if not _is_image(member):
            raise fault(where, f"{member.shown} is no image; allowed: {', '.join(SUFFIXES)}")
        if len(member.place.parts) < 2 or member.place.is_absolute() or ".." in member.place.parts:
            raise fault(where, f"{member.shown} says no label; expected <label>/<name>{member.place.suffix}")
        if member.inside.flag_bits & 1:
            raise fault(where, f"{member.shown} is encrypted")
        if member.inside.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of the others Python unpacks more than it is asked for.
            raise fault(where, f"{member.shown} is packed otherwise than by deflate, which alone is allowed")
        if member.inside.file_size > MOST_BYTES:
            size = member.inside.file_size
            raise fault(where, f"{member.shown} unpacks to {size:,} bytes; allowed: at most {MOST_BYTES:,}")
    if sum(member.inside.file_size for member in members) > limit:
        raise fault(where, f"the archives unpack to more than {limit:,} bytes")


def _unpacked(members: Sequence[Member], where: str) -> Iterator[bytes]:
    for archive, inside in itertools.groupby(members, key=lambda member: member.archive):
        with zipfile.ZipFile(archive) as opened:
            for member in inside:
                try:
                    with opened.open(member.inside) as stream:
                        # Read as a whole it would be unpacked as a whole, whatever size the archive's list gives.
                        yield stream.read(member.inside.file_size)
                except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:
                    raise fault(where, f"{member.shown} cannot be unpacked: {error}") from error
