"""``limbeck submit``: a configuration from a file, a recipe and options; local data goes up first."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer
from pydantic import ValidationError

from limbeck.cli.output import DEFAULT_URL, AsJson, Url, connect, print_json, say
from limbeck.cli.watching import watch_to_the_end
from limbeck.client import Client
from limbeck.client.packing import ARCHIVES, TABLES, chosen_files, split_files, stem, tables_in
from limbeck.config import Columns, Dataset, DistillConfig, Prune, Splits, Student, Teacher, TextColumns
from limbeck.errors import InvalidInput, Problem
from limbeck.findings import invalid_config
from limbeck.image_files import image_splits
from limbeck.recipes import recipe as find_recipe
from limbeck.spec import Spec

#: What a bare value stands for, so that ``--set teacher.finetune.epochs=2`` works beside ``--teacher name``.
_SHORTHAND = {
    "teacher": Teacher.shorthand,
    "dataset": Dataset.shorthand,
    "student": Student.shorthand,
    "student.prune": Prune.shorthand,
    **dict.fromkeys(("method", "task", "training.loss", "training.sample_weighting", "training.augmentation"), "type"),
}
#: Endings of files that are data.
_TABLES = (*TABLES, *(suffix + ".gz" for suffix in TABLES))
#: Fields of a job that are none of its configuration.
_BESIDE_THE_CONFIG = ("name", "metadata", "owner", "priority", "resources")

Document = dict[str, Any]
_Spec = TypeVar("_Spec", bound=Spec)


def submit(
    teacher: Annotated[str | None, typer.Option(help="Hub name, builtin:…, model:mdl_…, or a local folder.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub name, builtin:…, dataset:ds_…, or a local file or folder of splits.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="How knowledge is passed, e.g. kd.")] = None,
    student: Annotated[str | None, typer.Option(help="Layers: a count (3), or teacher layers (1,3,5).")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field, e.g. training.epochs=2.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A configuration in .json or .toml; options win over it.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A named configuration to start from, e.g. demo.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Your own notes on the job.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first.")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key submits only once.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show its progress.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Queue a distillation. A teacher or data set that is a local file or folder is uploaded first."""
    document: Document = deepcopy(dict(find_recipe(recipe).document)) if recipe else {}
    document |= read_document(file) if file else {}
    for field, value in (("teacher", teacher), ("dataset", dataset), ("student", _layers(student))):
        _put(document, field, value)
    if method is not None:
        document["method"] = method
    for setting in settings or ():
        set_field(document, *_pair(setting, "--set"))
    notes = dict(_pair(one, "--metadata") for one in metadata or ())
    _require_valid(document)
    with connect(url) as client:
        _upload_what_is_local(_Uploader(client), document)
        job = client.submit(document, name=name, metadata=notes, priority=priority, idempotency_key=key)
        if as_json:
            print_json(job)
        else:
            say(f"Job {job.id} is {job.status}.")
            if job.waits_for is not None:
                say(f"It waits for {job.waits_for}.", "yellow")
            if not watch:
                say(f"See it with `limbeck watch {job.id}`.", "dim")
        if watch:
            watch_to_the_end(client, job.id, as_json=as_json)


def read_document(path: Path) -> Document:
    """A configuration file.

    Raises:
        InvalidInput: it is not there, not JSON or TOML, or holds no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise InvalidInput(f"{path} is not valid {kind}: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"{path} holds no object with the fields of a configuration.")
    return document


def set_field(document: Document, path: str, value: str) -> None:
    """``training.epochs``, ``2``: values are JSON where they can be read so, else text."""
    *parents, last = path.split(".")
    here = document
    for depth, part in enumerate(parents, start=1):
        below = here.get(part)
        if not isinstance(below, dict):
            shorthand = _SHORTHAND.get(".".join(parents[:depth]))
            below = {shorthand: below} if shorthand and below is not None else {}
        here[part] = below = dict(below)
        here = below
    try:
        wanted = json.loads(value)
    except ValueError:
        wanted = value
    here[last] = _beside(here.get(last), wanted, _SHORTHAND.get(path))


def _beside(there: Any, value: Any, shorthand: str | None) -> Any:
    """A value for a field that holds options: what it is short for changes, and the others stay, but those of another
    type."""
    if shorthand is None or not isinstance(there, dict) or isinstance(value, dict) or value is None:
        return value
    if shorthand == "type" and (not isinstance(value, str) or there.get("type", value) != value):
        return value
    return there | {shorthand: value}


def _put(document: Document, field: str, value: Any) -> None:
    """Set what the shorthand stands for and keep what else the field holds."""
    if value is not None:
        document[field] = _beside(document.get(field), value, _SHORTHAND[field])


def _pair(text: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise InvalidInput(f"{option} takes NAME=VALUE; found {text!r}.")
    return name, value


def _layers(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        detail = f"found {text!r}; allowed: a count such as 3, or teacher layers such as 1,3,5"
        raise InvalidInput(f"--student: {detail}", [Problem("/student/layers", detail)]) from error
    return numbers if "," in text else numbers[0]


class _Uploads(Protocol):
    """Takes what lies here, and gives what the server calls it."""

    def model(self, path: Path) -> str:
        """A teacher."""

    def dataset(self, path: Path, columns: Columns | None, task: str | None, splits: Splits | None = None) -> str:
        """Data, or texts alone."""


class _Uploader:
    """To the server, and tells."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def model(self, path: Path) -> str:
        return self._told(path, lambda: self._client.upload_model(path).reference)

    def dataset(self, path: Path, columns: Columns | None, task: str | None, splits: Splits | None = None) -> str:
        files = None if splits is None else chosen_files(path, splits)
        self._tell_of_the_others(path, files)
        name = stem(path / "train") if files else None  # as of the folder
        source = files or path
        return self._told(
            path, lambda: self._client.upload_dataset(source, name=name, columns=columns, task=task).reference
        )

    def _tell_of_the_others(self, path: Path, files: Mapping[str, Path] | None) -> None:
        """A file that is data and no split must not be passed over in silence."""
        if not path.is_dir() or image_splits(path):
            return
        used = set((files or split_files(path)).values())
        if others := [one.name for one in tables_in(path) if one not in used]:
            say(f"Not used of {path}: {', '.join(others)} (dataset.splits says which file is which split).", "dim")

    def _told(self, path: Path, upload: Callable[[], str]) -> str:
        say(f"Uploading {path} …", "dim")
        reference = upload()
        say(f"{path} is now {reference}.")
        return reference


class _Pretence:
    """Uploads nothing, and counts what would be."""

    def __init__(self) -> None:
        self.count = 0

    def model(self, path: Path) -> str:
        self.count += 1
        return "model:mdl_to_be"

    def dataset(self, path: Path, columns: Columns | None, task: str | None, splits: Splits | None = None) -> str:
        self.count += 1
        return "dataset:ds_to_be"


def _require_valid(document: Document) -> None:
    """A typo must not cost an upload, which nobody would use: the server is asked only after it.

    Raises:
        InvalidConfig: naming each field.
        InvalidInput: something is written like a path, and is not there.
    """
    pretence, checked = _Pretence(), deepcopy(document)
    _upload_what_is_local(pretence, checked)
    if pretence.count:
        DistillConfig.parse({name: value for name, value in checked.items() if name not in _BESIDE_THE_CONFIG})


def _upload_what_is_local(uploads: _Uploads, document: Document) -> None:
    """Upload, and name in ``document`` what the server made of it."""
    teacher = _local(_source(document, "teacher"), ARCHIVES)
    student = document.get("student")
    options: Document = student if isinstance(student, dict) else {}
    start = _local(_text(options.get("source")), ARCHIVES)
    _upload_further_teachers(uploads, document)
    dataset = _local(_source(document, "dataset"), _TABLES)
    if teacher is not None:
        _put(document, "teacher", uploads.model(teacher))
    if start is not None:
        document["student"] = {**options, "source": uploads.model(start)}
    if dataset is not None:
        columns, splits = _taken(document, "columns", Columns), None
        if dataset.is_dir() and not image_splits(dataset):
            splits = _taken(document, "splits", Splits)
        _put(document, "dataset", uploads.dataset(dataset, columns, _task(document), splits))
    for at, extra in _unlabelled(document):
        texts = _local(extra["source"], _TABLES)
        if texts is not None:
            extra["source"] = uploads.dataset(texts, _column_of_texts(extra, at), "masked_lm")


def _column_of_texts(extra: Document, at: str) -> Columns | None:
    columns = _parsed(extra.pop("columns", None), TextColumns, f"{at}/columns")
    if columns is not None and columns.text_pair is not None:
        raise InvalidInput(
            f"{extra['source']}: texts without labels go up one by one, without columns.text_pair; upload the pairs as "
            "a data set with labels, which nobody then reads, and name it here as dataset:ds_…"
        )
    return None if columns is None else Columns(text=columns.text)


def _unlabelled(document: Document) -> list[tuple[str, Document]]:
    """The augmentations that name a source of texts, as they stand in ``document``, with their pointers."""
    training, at = document.get("training"), "/training/augmentation"
    found = training.get("augmentation") if isinstance(training, dict) else None
    each = [(f"{at}/{index}", one) for index, one in enumerate(found)] if isinstance(found, list) else [(at, found)]
    return [(at, one) for at, one in each if isinstance(one, dict) and isinstance(one.get("source"), str)]


def _upload_further_teachers(uploads: _Uploads, document: Document) -> None:
    """Those of ``teacher.more`` that lie here."""
    teacher = document.get("teacher")
    more = teacher.get("more") if isinstance(teacher, dict) else None
    if not isinstance(teacher, dict) or more is None:
        return
    found: list[Any] = []
    for one in more if isinstance(more, list) else [more]:
        source = one.get("source") if isinstance(one, dict) else one
        path = _local(_text(source), ARCHIVES)
        if path is not None:
            reference = uploads.model(path)
            one = {**one, "source": reference} if isinstance(one, dict) else reference
        found.append(one)
    document["teacher"] = {**teacher, "more": found}


def _taken(document: Document, name: str, spec: type[_Spec]) -> _Spec | None:
    """``columns`` or ``splits`` of the data set: an upload is stored under the usual names, so that its own ones are
    told to the upload, and not to the job."""
    dataset = document["dataset"]
    return _parsed(dataset.pop(name, None), spec, f"/dataset/{name}") if isinstance(dataset, dict) else None


def _parsed(found: Any, spec: type[_Spec], at: str) -> _Spec | None:
    """
    Args:
        at: the pointer of ``found`` in the whole document.
    """
    try:
        return None if found is None else spec.model_validate(found)
    except ValidationError as error:
        raise invalid_config(error, found, spec, at=at) from error


def _task(document: Document) -> str | None:
    """What the job says that the data are for; the server checks it."""
    task = document.get("task")
    task = task.get("type") if isinstance(task, dict) else task
    return _text(task)


def _source(document: Document, field: str) -> str | None:
    value = document.get(field)
    return _text(value.get("source") if isinstance(value, dict) else value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _local(value: str | None, suffixes: Sequence[str]) -> Path | None:
    """The path that ``value`` means, if it means one: it is written like a path, or there is such a thing here."""
    if value is None or value.startswith(("builtin:", "model:", "dataset:")):
        return None
    path = Path(value.removeprefix("path:")).expanduser()
    written = value.startswith((".", "/", "~", "path:")) or value.lower().endswith(tuple(suffixes))
    if written and not path.exists():
        raise InvalidInput(f"There is no file or folder {value}.")
    return path if path.exists() else None
