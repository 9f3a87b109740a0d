"""What a student's folder says about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import InvalidModel
from limbeck.formats import FILES, Format

#: The tasks whose students can be asked.
TASKS = (
    "sequence_classification",
    "multi_label",
    "regression",
    "token_classification",
    "question_answering",
    "embeddings",
    "masked_lm",
    "image_classification",
)

TOKENIZER = "tokenizer.json"
#: The files beside it that a :class:`~limbeck.runtime.Predictor` reads.
SIDE_FILES = ("limbeck.json", "config.json", TOKENIZER)
#: The same of a student of images.
IMAGE_SIDE_FILES = ("limbeck.json", "config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class StudentFacts:
    """What is to be known of a student before it can answer."""

    labels: tuple[str, ...]
    max_length: int  #: tokens; longer texts are cut
    pair: bool  #: whether it was trained on pairs of texts
    pad_id: int
    speed: float | None = None  #: at which texts leave early unless a request says otherwise; None: it has no exits
    task: str = TASKS[0]
    mask: str | None = None  #: how the mask is written, where it finds masked tokens
    width: int = 0  #: of the vectors of a student that gives these
    layers: int = 0  #: of a student with early exits

    @classmethod
    def read(cls, folder: Path) -> StudentFacts:
        """
        Raises:
            InvalidModel: the folder is no student's, or one of a later version of Limbeck.
        """
        described = _read_json(folder / "limbeck.json", "this is no student of Limbeck's")
        found = described.get("version"), described.get("task")
        if found[0] != 1 or found[1] not in TASKS:
            raise InvalidModel(
                f"limbeck.json in {folder} has version {found[0]!r} and task {found[1]!r}; "
                f"this version of Limbeck reads version 1 and the tasks {', '.join(TASKS)}."
            )
        config = _read_json(folder / "config.json", "a student's folder has the model's configuration")
        try:
            return cls(
                labels=tuple(str(label) for label in described["labels"]),
                max_length=int(described["max_length"]),
                pair=bool(described["pair"]),
                pad_id=int(config.get("pad_token_id") or 0),
                speed=float(described["exits"]["speed"]) if "exits" in described else None,
                task=found[1],
                mask=str(described["mask"]) if found[1] == "masked_lm" else None,
                width=int(described["width"]) if found[1] == "embeddings" else 0,
                layers=int(described["exits"]["layers"]) if "exits" in described else 0,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidModel(f"limbeck.json in {folder} is not complete: {error!r}") from error


def exported(folder: Path, wanted: Format | None) -> tuple[Format, Path]:
    """The exported form to run, and its file; without a wish the exact one where there is one.

    Raises:
        InvalidModel: there is no such file.
    """
    found = {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}
    for name, file in found.items():
        if wanted in (None, name):
            return name, file
    if not found:
        raise InvalidModel(
            f"The folder {folder} has no ONNX file, with which a student answers: `limbeck download JOB --format onnx` "
            "fetches it with one. (The form safetensors is for transformers.)"
        )
    raise InvalidModel(f"The student in {folder} has no exported form {wanted}; it has: {' and '.join(found)}.")


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read ({error.strerror}); {expected}.") from error
    except ValueError as error:
        raise InvalidModel(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidModel(f"{path} holds no JSON object.")
    return document
