"""Uploads of data sets and models; folders are packed first, in a folder that goes again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from limbeck.client import packing
from limbeck.client.connection import Connection
from limbeck.client.records import Dataset, Model
from limbeck.config import Columns
from limbeck.errors import InvalidInput
from limbeck.image_files import image_splits

#: Reading, checking and storing an upload is part of its request.
_UPLOAD = 900.0


def upload_dataset(
    connection: Connection,
    source: Path | str | Mapping[str, Path | str],
    name: str | None,
    columns: Columns | None,
    task: str | None,
) -> Dataset:
    """As :meth:`limbeck.client.Client.upload_dataset`."""
    pictures = {} if isinstance(source, Mapping) else image_splits(Path(source))
    with ExitStack() as stack:
        if pictures:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limbeck-upload-")))
            files, name = packing.pack_images(pictures, scratch), name or Path(str(source)).resolve().name
        else:
            files = packing.split_files(source)
        parts = {split: (path.name, stack.enter_context(path.open("rb"))) for split, path in files.items()}
        data = {"name": name or packing.stem(files["train"])}
        data |= columns.model_dump(exclude_none=True) if columns else {}
        data |= {"task": task} if task else {}
        answer = connection.json("POST", "/v1/datasets", repeatable=False, files=parts, data=data, timeout=_UPLOAD)
    return Dataset.model_validate(answer)


def upload_model(connection: Connection, source: Path | str, name: str | None) -> Model:
    """As :meth:`limbeck.client.Client.upload_model`."""
    path = Path(source)
    if not path.exists():
        raise InvalidInput(f"There is no file or folder {path}.")
    with tempfile.TemporaryDirectory(prefix="limbeck-upload-") as folder:
        archive = path
        if path.is_dir():
            archive = Path(folder) / f"{path.resolve().name}.tar.gz"
            packing.pack_model(path, archive)
        with archive.open("rb") as file:
            answer = connection.json(
                "POST",
                "/v1/models",
                repeatable=False,
                files={"file": (archive.name, file)},
                data={"name": name or packing.stem(archive)},
                timeout=_UPLOAD,
            )
    return Model.model_validate(answer)
