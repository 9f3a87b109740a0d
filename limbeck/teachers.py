"""The folders of a job's teachers, and what is made of each: fine-tuned or not, with its own head or a new one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import sources
from limbeck.config import FineTune
from limbeck.errors import InvalidConfig, InvalidModel, Problem
from limbeck.model_folder import model_facts
from limbeck.students import label_order, read_config
from limbeck.teacher_spec import FROM_SCRATCH

if TYPE_CHECKING:
    from limbeck.config import TeacherModel
    from limbeck.model_folder import ModelFacts
    from limbeck.run import Run
    from limbeck.sources import LocalModel
    from limbeck.tasks.base import Task


@dataclass(frozen=True, slots=True)
class TeacherFolder:
    """A teacher as it came."""

    spec: TeacherModel
    pointer: str  #: of ``spec`` in the configuration
    model: LocalModel
    facts: ModelFacts

    @property
    def path(self) -> Path:
        return self.model.path

    def finetune(self, task: Task) -> FineTune | None:
        """How it is fine-tuned; None where it is used as it is.

        Raises:
            InvalidConfig: it must not be, and has no head for the task.
        """
        wanted, has_head = self.spec.finetune, self.facts.has_head_for(task)
        if isinstance(wanted, FineTune):
            return wanted
        if wanted is False and not has_head:
            at = f"{self.pointer}/finetune"
            detail = f"found false; this teacher has no head for {task.type}, so that it has to be fine-tuned: true"
            raise InvalidConfig(f"{at}: {detail}", [Problem(at, detail)])
        return FROM_SCRATCH.get(self.spec.source, FineTune()) if wanted or not has_head else None

    def keeps_head(self, task: Task, labels: tuple[str, ...]) -> bool:
        """Whether its own head is used.

        Raises:
            InvalidModel: it is used as it is, and answers with other labels than the data set's.
        """
        must = self.finetune(task) is None
        return self.facts.has_head_for(task) and labels_agree(self.path, task, labels, must=must)

    def sha256(self) -> str:
        """Of its one safetensors file, or of the list of several files' hashes."""
        digests = []
        for path in sorted(self.path.glob("*.safetensors")):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def find_teachers(run: Run, given: Mapping[str, Path]) -> list[TeacherFolder]:
    """The folders of all teachers, each at the commit that an earlier attempt found.

    Raises:
        InvalidModel, Unavailable: as :func:`limbeck.sources.teacher_folder`, with the pointer of the teacher meant.
    """
    known = run.facts.get("teacher_revisions", [])
    found = []
    for place, (spec, pointer) in enumerate(zip(run.config.teacher.models, run.config.teacher.pointers, strict=True)):
        if place < len(known) and known[place] is not None:
            spec = spec.model_copy(update={"revision": known[place]})
        try:
            model = sources.teacher_folder(spec, given, run.poll)
            found.append(TeacherFolder(spec, pointer, model, model_facts(model.path)))
        except InvalidModel as error:
            if place == 0:
                raise
            problems = [Problem(one.pointer.replace("/teacher", pointer, 1), one.detail) for one in error.problems]
            named = pointer.strip("/").replace("/", ".")
            message = f"{named}.{error.message.removeprefix('teacher.')}" if error.problems else error.message
            raise InvalidModel(message, problems) from error
    return found


def labels_agree(folder: Path, task: Task, labels: tuple[str, ...], *, must: bool) -> bool:
    """Whether the head of a model answers with the data set's labels.

    Raises:
        InvalidModel: it ``must``, and does not.
    """
    config: Any = read_config(folder)
    try:
        if task.headless or task.of_words:
            return True
        if not task.named:
            _require_outputs(config.num_labels, task.outputs(labels))
            return True
        label_order([config.id2label[i] for i in range(config.num_labels)], labels)
    except InvalidModel:
        if must:
            raise
        return False
    return True


def _require_outputs(found: int, wanted: int) -> None:
    if found != wanted:
        raise InvalidModel(
            f"The teacher's head has {found} outputs and needs {wanted}; let the job fine-tune it: "
            "teacher.finetune = true."
        )
