"""What is uploaded and downloaded: model folders as archives, and the files of a data set."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from limbeck.config import Splits
from limbeck.errors import InvalidArchive, InvalidDataset, InvalidModel, Problem
from limbeck.image_files import SPLIT_NAMES, labelled_images

ARCHIVES = (".tar.gz", ".tgz", ".zip")
SPLITS = ("train", "validation", "test")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
#: What a Hugging Face folder is made of. Pickles (``pytorch_model.bin``), optimizer states and logs stay at home.
_WANTED = (
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.md",
    "*.jinja",
    "1_Pooling/config.json",  # how an embeddings teacher makes vectors: without it, another way would pass for its own
    "onnx/*.onnx",
    "onnx/exits/*.onnx",
)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def pack_model(folder: Path, archive: Path) -> None:
    """Write what a server needs of a Hugging Face folder to ``archive``, a ``.tar.gz``.

    Raises:
        InvalidModel: the folder has no ``config.json`` or no safetensors.
    """
    if not (folder / "config.json").is_file():
        raise InvalidModel(f"{folder} is not a Hugging Face model folder: it has no config.json.{_inside(folder)}")
    files = sorted({path for pattern in _WANTED for path in folder.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        raise InvalidModel(
            f"{folder} has no *.safetensors file. Limbeck reads no pickles; convert the model with "
            "`model.save_pretrained(folder)` of transformers 5."
        )
    # Weights hardly shrink, so the fastest level is the right one.
    with tarfile.open(archive, "w:gz", compresslevel=1) as out:
        for path in files:
            out.add(path.resolve(), arcname=path.relative_to(folder).as_posix(), recursive=False)


def _inside(folder: Path) -> str:
    """Where the model is, of a folder of the hub's cache."""
    found = sorted(folder.glob("snapshots/*/config.json"))
    return f" It is one of the hub's cache; the model lies in {found[0].parent}." if found else ""


def unpack_model(archive: Path, folder: Path) -> None:
    """Make ``folder`` of a downloaded model; it appears when it is whole. An empty one is filled, and the file by which
    a student is known comes last. Members that climb out are refused.

    Raises:
        InvalidArchive: the archive is broken or hostile.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as scratch:
        root = Path(scratch)
        try:
            with tarfile.open(archive) as source:
                source.extractall(root, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise InvalidArchive(f"{archive.name} cannot be unpacked: {error}") from error
        inside = list(root.iterdir())
        # The server packs one folder, named like the model.
        whole = inside[0] if len(inside) == 1 and inside[0].is_dir() else root
        if not folder.exists():
            whole.rename(folder)
            return
        # Not replaced: a disk may be mounted there, or somebody stand in it.
        for path in sorted(whole.iterdir(), key=lambda path: path.name == "limbeck.json"):
            shutil.move(path, folder)


def split_files(source: Path | str | Mapping[str, Path | str]) -> dict[str, Path]:
    """Which file is which split; see :meth:`limbeck.client.Client.upload_dataset`.

    Raises:
        InvalidDataset: there is no such file, or none for ``train``.
    """
    if isinstance(source, Mapping):
        files = {split: Path(path) for split, path in source.items()}
    elif Path(source).is_dir():
        files = _in_folder(Path(source))
    else:
        files = {"train": Path(source)}
    for split, path in files.items():
        if split not in SPLITS:
            raise InvalidDataset(f"There is no split {split!r}; allowed: {', '.join(SPLITS)}.")
        if not path.is_file():
            raise InvalidDataset(f"There is no file {path}.")
    if "train" not in files:
        raise InvalidDataset(f"A data set needs a train split; found: {', '.join(files) or 'none'}.")
    return files


def pack_images(splits: Mapping[str, Path], out: Path) -> dict[str, Path]:
    """Write folders of images (``limbeck.image_files.image_splits``) as ``out/{split}.jsonl.gz``, in base64.

    Raises:
        InvalidDataset: something that is no image lies among them, or a split has none.
    """
    files = {split: out / f"{split}.jsonl.gz" for split in splits}
    for split, folder in splits.items():
        # What images are made of is packed already: the fastest level takes base64's share away.
        with gzip.open(files[split], "wt", encoding="utf-8", compresslevel=1) as lines:
            for file, name, label in labelled_images(folder, split):
                image = {"bytes": base64.b64encode(file.read_bytes()).decode(), "path": name}
                lines.write(json.dumps({"image": image, "label": label}, ensure_ascii=False) + "\n")
    return files


def tables_in(folder: Path) -> list[Path]:
    """The files of a folder that may be data."""
    return [path for path in sorted(folder.iterdir()) if path.name.lower().removesuffix(".gz").endswith(TABLES)]


def chosen_files(folder: Path, splits: Splits) -> dict[str, Path]:
    """The files of a folder that a job names as its splits; the usual names serve as what is not named.

    Raises:
        InvalidDataset: one is not there.
    """
    named = {path.name.split(".")[0]: path for path in tables_in(folder)}
    wanted = {split: name for split, name in splits.model_dump(exclude_unset=True).items() if name is not None}
    for split, name in wanted.items():
        if name not in named:
            detail = f"found no split {name!r} in {folder}; allowed: {', '.join(sorted(named)) or 'none'}"
            raise InvalidDataset(f"splits.{split}: {detail}", [Problem(f"/dataset/splits/{split}", detail)])
    left = [path for name, path in named.items() if name not in wanted.values()]
    return {**_usual(folder, left, besides=wanted), **{split: named[name] for split, name in wanted.items()}}


def _in_folder(folder: Path) -> dict[str, Path]:
    files = _usual(folder, tables_in(folder))
    if "train" not in files:
        raise InvalidDataset(f"{folder} has no train file; it is named train{{{','.join(TABLES)}}}, or that with .gz.")
    return files


def _usual(folder: Path, paths: Iterable[Path], besides: Container[str] = ()) -> dict[str, Path]:
    """Which files are which split by their names, but of the splits ``besides``."""
    files: dict[str, Path] = {}
    for path in paths:
        split = SPLIT_NAMES.get(path.name.split(".")[0])
        if split is None or split in besides:
            continue
        if split in files:
            raise InvalidDataset(f"{folder} has two files for {split}: {files[split].name} and {path.name}.")
        files[split] = path
    return files


def stem(path: Path) -> str:
    """A name to show: ``reviews`` for ``reviews.csv.gz``; a folder's name for ``train.csv`` in it."""
    name = path.name.split(".")[0] or path.name
    return path.resolve().parent.name or name if name in SPLITS else name
