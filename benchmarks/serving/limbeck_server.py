"""Limbeck's API with students in its database and storage, as jobs would have left them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.serving.processes import running

#: The forms, and the file that a student which has the other one lacks.
FORMS = {"onnx": "model_int8.onnx", "onnx-int8": "model.onnx"}


@contextmanager
def limbeck(
    student: Path, form: str, ids: Sequence[str] = ("mdl_bench",), settings: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """Address and process id of ``python -m api`` that has the student under each of the ``ids``."""
    with tempfile.TemporaryDirectory(prefix="limbeck-serving-") as name:
        _fill(Path(name), student, form, ids)
        environment = {**os.environ, "LIMBECK_DATA_DIR": name, **(settings or {})}
        command = [sys.executable, "-m", "api", "--port", "{port}"]
        with running(command, environment, ready="/healthz", folder=Path(name)) as found:
            yield found


def _fill(folder: Path, student: Path, form: str, ids: Sequence[str]) -> None:
    from models.db import Database
    from models.model import ModelKind
    from models.repository.catalogue import StoredFile, add_model
    from models.settings import Settings
    from models.storage import open_storage

    settings = Settings(data_dir=folder)
    database = Database(settings)
    database.migrate()
    storage = open_storage(settings)
    unwanted = {FORMS[form], "model.safetensors", "done"}
    wanted = sorted(path for path in student.rglob("*") if path.is_file() and path.name not in unwanted)
    for model_id in ids:
        files = []
        for path in wanted:
            inside = path.relative_to(student).as_posix()
            stored = storage.put_file(path, f"models/{model_id}/{inside}")
            files.append(StoredFile(inside, stored.key, stored.bytes, stored.sha256))
        with database.session() as session:
            add_model(session, kind=ModelKind.STUDENT, name="bench", files=files, model_id=model_id)
    database.dispose()
