"""Images in zip archives: which split and label they are of, and what an archive must not do."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from limbeck.data.image_archives import archive_table, archived_splits
from limbeck.errors import InvalidDataset
from limbeck.runtime.images import MOST_BYTES


def png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, *names: str, content: bytes | None = None, packed: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", packed) as archive:
        for place, name in enumerate(names):
            archive.writestr(name, png(place) if content is None else content)
    return path


def loaded(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """By split, each image's name and label."""
    found = {}
    for split, members in archived_splits(folder).items():
        table = archive_table(members, split)
        names = [cell["path"] for cell in table.columns["image"]]
        assert all(cell["bytes"].startswith(b"\x89PNG") for cell in table.columns["image"])
        found[split] = list(zip(names, table.columns["label"], strict=True))
    return found


def test_an_archive_says_its_split_and_its_folders_the_labels(tmp_path: Path) -> None:
    """Guards the layouts of the hub, one of them in parts, and what a Mac leaves in an archive."""
    write(tmp_path / "data" / "train-00000-of-00002.zip", "train/rust/1.png", "train/rust/__MACOSX/._1.png")
    write(tmp_path / "data" / "train-00001-of-00002.zip", "train/healthy/2.PNG", "train/healthy/.DS_Store")
    write(tmp_path / "data" / "val.zip", "rust/3.png")
    assert loaded(tmp_path) == {
        "train": [("train/rust/1.png", "rust"), ("train/healthy/2.PNG", "healthy")],
        "validation": [("rust/3.png", "rust")],
    }


def test_an_archive_that_names_no_split_has_its_own_inside(tmp_path: Path) -> None:
    """Guards test images from the training split, and a label that is called as a split is."""
    write(
        tmp_path / "vehicles.zip", "vehicles/train/train/1.png", "vehicles/train/car/2.png", "vehicles/test/car/3.png"
    )
    assert {split: [label for _, label in rows] for split, rows in loaded(tmp_path).items()} == {
        "train": ["train", "car"],
        "test": ["car"],
    }
    (tmp_path / "vehicles.zip").unlink()
    write(tmp_path / "vehicles.zip", "train/1.png", "car/2.png")
    assert loaded(tmp_path) == {"train": [("train/1.png", "train"), ("car/2.png", "car")]}


def test_what_others_call_a_split_is_none_of_train(tmp_path: Path) -> None:
    """Guards published test images that would be trained on."""
    for number, name in enumerate(("train", "dev", "eval"), start=1):
        write(tmp_path / f"{name}.zip", f"a/{number}.png")
    assert {split: [name for name, _ in rows] for split, rows in loaded(tmp_path).items()} == {
        "train": ["a/1.png"],
        "validation": ["a/2.png"],
        "test": ["a/3.png"],
    }


def test_tables_and_archives_of_something_else_are_left_to_datasets(tmp_path: Path) -> None:
    """Guards zipped tables, and images that a table beside them gives its labels."""
    write(tmp_path / "train.zip", "train.csv", content=b"text,label")
    assert archived_splits(tmp_path) == {}
    write(tmp_path / "train.zip", "a/1.png", "metadata.csv")
    assert archived_splits(tmp_path) == {}
    write(tmp_path / "train.zip", "a/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,label")
    assert archived_splits(tmp_path) == {}


@pytest.mark.parametrize(
    ("names", "detail"),
    [
        (("a/1.png", "a/notes.txt"), "train.zip: a/notes.txt is no image; allowed: .png"),
        (("a/1.png", "2.png"), "train.zip: 2.png says no label; expected <label>/<name>.png"),
        (("a/1.png", "../../etc/2.png"), "train.zip: ../../etc/2.png says no label"),
        (("a/1.png", "/etc/2.png"), "train.zip: /etc/2.png says no label"),
    ],
)
def test_what_is_no_image_with_a_label_is_named(tmp_path: Path, names: tuple[str, ...], detail: str) -> None:
    """Guards labels such as `..`, and files that a user believes are read."""
    write(tmp_path / "train.zip", *names)
    with pytest.raises(InvalidDataset) as caught:
        loaded(tmp_path)
    assert detail in caught.value.message


def test_what_would_fill_memory_is_refused(tmp_path: Path) -> None:
    """Guards archives that are small on disk: by the sizes that they list, before anything is unpacked."""
    path = write(tmp_path / "train.zip", "a/1.png", content=bytes(MOST_BYTES + 1))
    assert path.stat().st_size < MOST_BYTES / 100
    members = archived_splits(tmp_path)["train"]
    with pytest.raises(InvalidDataset, match="unpacks to 10,485,761 bytes; allowed: at most 10,485,760"):
        archive_table(members, "train")
    write(path, "a/1.png", "a/2.png", content=bytes(1000))
    members = archived_splits(tmp_path)["train"]
    with pytest.raises(InvalidDataset, match="unpack to more than 1,999 bytes"):
        archive_table(members, "train", limit=1999)
    write(path, "a/1.png", content=bytes(1000), packed=zipfile.ZIP_BZIP2)
    with pytest.raises(InvalidDataset, match="packed otherwise than by deflate"):
        loaded(tmp_path)
    write(path, "a/1.png", "a/2.png")
    members = archived_splits(tmp_path)["train"]
    with pytest.raises(InvalidDataset, match="hold 2 files; allowed: at most 1"):
        archive_table(members, "train", most=1)


def test_an_archive_that_lies_about_a_size_is_refused_unread(tmp_path: Path) -> None:
    """Guards memory against 64 MiB that are listed as 100 bytes: Python unpacks all of a file that is read whole."""
    path = write(tmp_path / "train.zip", "a/1.png", content=bytes(64 * 1024**2))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\x01\x02") + 24, 100)
    path.write_bytes(data)
    members = archived_splits(tmp_path)["train"]
    assert members[0].inside.file_size == 100
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataset, match=r"train\.zip: a/1\.png cannot be unpacked: Bad CRC"):
            archive_table(members, "train")
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    """Guards half a download, a flipped byte and a password."""
    path = write(tmp_path / "train.zip", "a/1.png", packed=zipfile.ZIP_STORED)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InvalidDataset, match=r"train\.zip is no zip archive that can be read"):
        archived_splits(tmp_path)
    path.write_bytes(whole.replace(b"IDAT", b"IDAX"))
    with pytest.raises(InvalidDataset, match=r"a/1\.png cannot be unpacked: Bad CRC"):
        loaded(tmp_path)
    locked = bytearray(whole)
    locked[whole.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(InvalidDataset, match=r"a/1\.png is encrypted"):
        loaded(tmp_path)
