"""Images in folders, what ``datasets`` calls an imagefolder: ``train/<label>/picture.png``. Decodes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from limbeck.errors import InvalidDataset, Problem

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
#: Words for a split, as the datasets library knows them.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def image_splits(folder: Path) -> dict[str, Path]:
    """The folders of a folder that hold labels with images, by the split that they are; none where it holds no such."""
    found: dict[str, Path] = {}
    for below in sorted(folder.iterdir()) if folder.is_dir() else ():
        split = SPLIT_NAMES.get(below.name.lower())
        if split is not None and below.is_dir() and any(one.is_dir() for one in below.iterdir()):
            found.setdefault(split, below)
    return found if "train" in found else {}


def labelled_images(folder: Path, where: str) -> Iterator[tuple[Path, str, str]]:
    """The images of one split, each with its name and its label, which is the folder that it lies in.

    Raises:
        InvalidDataset: there is no image, or something else lies among them.
    """
    count = 0
    for label in sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")):
        for file in sorted(one for one in label.rglob("*") if one.is_file() and not one.name.startswith(".")):
            name = file.relative_to(folder).as_posix()
            if file.suffix.lower() not in SUFFIXES:
                raise _fault(where, f"found {name}, which is no image; allowed: {', '.join(SUFFIXES)}")
            count += 1
            yield file, name, label.name
    if not count:
        raise _fault(where, f"no image lies in {folder}; expected {folder.name}/<label>/<name>.png")


def _fault(where: str, detail: str) -> InvalidDataset:
    return InvalidDataset(f"{where}: {detail}", [Problem(f"/{where}", detail)])
