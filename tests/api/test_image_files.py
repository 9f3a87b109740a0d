"""Students of images where students are loaded from: their folder has a preparation in a tokenizer's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.inference.students import files_of
from api.serve.folder import FolderShelf
from limbeck.errors import Conflict


def _folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_a_student_of_images_needs_its_preparation_and_no_tokenizer(tmp_path: Path) -> None:
    """Guards `limbeck serve` and the API, which fetch a student's files by name and would leave this one behind."""
    folder = _folder(tmp_path / "one", "limbeck.json", "config.json", "preprocessor_config.json", "onnx/model.onnx")
    model_id, files = FolderShelf(folder).find("one")
    form, needed = files_of(model_id, files)
    assert form == "onnx"
    assert [file.path for file in needed] == [
        "limbeck.json",
        "config.json",
        "preprocessor_config.json",
        "onnx/model.onnx",
    ]


def test_a_folder_with_neither_cannot_answer(tmp_path: Path) -> None:
    _, files = FolderShelf(_folder(tmp_path / "one", "limbeck.json", "config.json", "onnx/model.onnx")).find("one")
    with pytest.raises(Conflict, match="cannot answer"):
        files_of("mdl_1", files)
