"""What can be known of a job before it runs: whether its sources are there, and whether the student fits the teacher.

A submit looks only at what lies near: the database, the storage, the packages that are installed. ``:validate`` also
asks the hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import httpx

from api.deps import Services
from limbeck import preflight, sources
from limbeck.config import DistillConfig, Teacher
from limbeck.data import stored
from limbeck.errors import InvalidConfig, InvalidModel, NotFound, Problem
from limbeck.model_folder import ModelFacts, config_facts, model_facts
from limbeck.source_names import TASKS_OF_BUILTINS
from models.repository import catalogue

#: How long the hub may take: somebody waits.
_HUB_SECONDS = 4.0
_MODEL, _DATASET, _PATH, _BUILTIN = "model:", "dataset:", "path:", "builtin:"
_DATA = "/dataset/source"


@dataclass(frozen=True, slots=True)
class _Known:
    """Of a data set; None where only reading the data would tell."""

    labels: Sequence[str] | None = None
    task: str | None = None
    kept: stored.Kept | None = None  #: where it is an upload

    @property
    def pair(self) -> bool | None:
        """Whether an example is two texts."""
        return None if self.kept is None else self.kept.pair


def require_possible(house: Services, config: DistillConfig) -> None:
    """Refuse what is known to fail.

    Raises:
        InvalidConfig: naming each field.
    """
    models, data, problems = _look_near(house, config)
    _raise((*problems, *_check(config, models, data)))


def examine(house: Services, config: DistillConfig) -> tuple[dict[str, Any] | None, list[str]]:
    """The same with the hub's help: what is known of the teacher, and what could not be checked.

    Raises:
        InvalidConfig: naming each field.
    """
    models, data, problems = _look_near(house, config)
    notes = []
    if not problems and not house.settings.hub_offline:
        revisions = _revisions(config)
        for pointer, source in config.model_sources().items():
            if models[pointer] is None:
                models[pointer], note = _ask_hub(pointer, source, revisions[pointer])
                notes += [note] if note else []
    _raise((*problems, *_check(config, models, data)))
    facts = models["/teacher/source"]
    if not config.dataset.source.startswith((_DATASET, _BUILTIN)):
        notes.append("The data set is read when the job runs.")
    known, teachers = data[_DATA], [models[f"{pointer}/source"] for pointer in config.teacher.pointers]
    notes += preflight.notes(config, known.task, known.pair, teachers=teachers, labels=known.labels)
    return (None if facts is None else asdict(facts)), notes


def _revisions(config: DistillConfig) -> dict[str, str | None]:
    """Of the hub, by the pointer of the source that they are of."""
    specs = zip(config.teacher.pointers, config.teacher.models, strict=True)
    found = {f"{pointer}/source": spec.revision for pointer, spec in specs}
    return {**found, "/student/source": config.student.revision}


def _check(
    config: DistillConfig, models: Mapping[str, ModelFacts | None], data: Mapping[str, _Known]
) -> tuple[Problem, ...]:
    known = data[_DATA]
    teacher, *more = (models[f"{pointer}/source"] for pointer in config.teacher.pointers)
    student = models.get("/student/source")
    found = preflight.check(
        config, teacher=teacher, labels=known.labels, student=student, task=known.task, pair=known.pair, more=more
    )
    if any(one.pointer == "/task" for one in found):
        return found  # another task has other columns
    uploads = {pointer: one.kept for pointer, one in data.items() if one.kept is not None}
    return (*found, *stored.problems(config, uploads))


def _look_near(
    house: Services, config: DistillConfig
) -> tuple[dict[str, ModelFacts | None], dict[str, _Known], tuple[Problem, ...]]:
    """The facts of each model, and what is known of each source of data, by its pointer; and what is wrong."""
    problems = []
    facts: dict[str, ModelFacts | None] = {}
    data: dict[str, _Known] = {}
    for pointer, source in config.model_sources().items():
        facts[pointer] = None
        try:
            facts[pointer] = _model(house, source)
        except (NotFound, InvalidModel) as error:
            problems.append(Problem(pointer, f"found {source!r}: {error.message}"))
    for pointer, source in config.data_sources().items():
        data[pointer] = _Known()
        try:
            data[pointer] = _data(house, source)
        except NotFound as error:
            problems.append(Problem(pointer, f"found {source!r}: {error.message}"))
    for pointer, source in {**config.model_sources(), **config.data_sources()}.items():
        if source.startswith(_PATH):
            problems.append(Problem(pointer, f"found {source!r}; a server takes no paths: upload it instead"))
    return facts, data, tuple(problems)


def _model(house: Services, source: str) -> ModelFacts | None:
    """None where only the hub knows."""
    if source.startswith(_BUILTIN):
        return _builtin(source)
    if not source.startswith(_MODEL):
        return None
    with house.database.reading() as session:
        model = catalogue.get_model(session, source.removeprefix(_MODEL))
        file = catalogue.model_file(session, model.id, "config.json")
    config = json.loads(b"".join(house.storage.open(file.key)))
    return config_facts(config, parameters=model.parameters or 0, bytes=model.bytes)


def _data(house: Services, source: str) -> _Known:
    if not source.startswith(_DATASET):
        return _Known(task=TASKS_OF_BUILTINS.get(source))
    with house.database.reading() as session:
        profile = catalogue.get_dataset(session, source.removeprefix(_DATASET)).profile
    # Data sets that were stored before there were other tasks say nothing of it.
    task = profile.get("task", "sequence_classification")
    return _Known(list(profile["labels"]), task, stored.Kept(task, profile["pair"]))


@lru_cache
def _builtin(source: str) -> ModelFacts:
    return model_facts(sources.teacher_folder(Teacher(source=source), {}).path)


def _ask_hub(pointer: str, source: str, revision: str | None) -> tuple[ModelFacts | None, str | None]:
    """What the hub's ``config.json`` says of the model that ``pointer`` names, or a note why it could not be asked.

    Raises:
        InvalidConfig: the hub has no such model.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(source, "config.json", revision=revision)
    try:
        answer = httpx.get(url, headers=build_hf_headers(), timeout=_HUB_SECONDS, follow_redirects=True)
        if answer.status_code in (401, 403, 404):
            at = f" at revision {revision!r}" if revision else ""
            detail = f"found {source!r}; the hub has no config.json of it{at}, or keeps it private"
            _raise([Problem(pointer, detail)])
        config = answer.raise_for_status().json()
        return config_facts(config, parameters=0, bytes=0), None
    except (httpx.HTTPError, ValueError) as error:
        return None, f"The hub could not be asked for {source!r} ({type(error).__name__}); the job asks again."
    except InvalidModel as error:
        _raise([Problem(pointer, error.message)])
        raise


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        lines = "; ".join(f"{one.pointer or '/'}: {one.detail}" for one in problems)
        raise InvalidConfig(f"The job cannot be done: {lines}", problems)
