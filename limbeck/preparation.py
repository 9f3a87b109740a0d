"""The first phase: the teacher's folder and the data set are fetched and checked, and texts become token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from limbeck import sources
from limbeck.batches import Encoded
from limbeck.callbacks import Stage
from limbeck.checkpoint import mapped_tensors
from limbeck.config import TASKS
from limbeck.errors import InvalidConfig, Problem
from limbeck.methods.base import SpecialTokens
from limbeck.model_folder import model_facts
from limbeck.pictures import Pictures
from limbeck.provenance import require_same, say_provenance
from limbeck.reading import SPLITS, read_data, require_fit
from limbeck.run import Run
from limbeck.scorecard import DatasetCard
from limbeck.student_plan import StudentPlan
from limbeck.students import Blueprint, config_facts_of, read_config, student_layers
from limbeck.tasks.base import Task
from limbeck.teachers import TeacherFolder, find_teachers, labels_agree
from limbeck.tokenizing import load_tokenizer
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.config import FineTune, Student
    from limbeck.model_folder import ModelFacts
    from limbeck.sources import LocalModel


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the other phases work on."""

    task: Task
    blueprint: Blueprint
    card: DatasetCard
    pair: bool  #: whether an example is two texts
    train: Encoded  #: the data set's own examples, then their copies, then texts without labels
    validation: Encoded
    test: Encoded
    student: StudentPlan
    layers: tuple[int, ...]  #: of the teacher, that the student's stand for
    finetune: FineTune | None
    keep_head: bool  #: whether the teacher's own head is used
    teacher_revision: str | None
    teacher_sha256: str
    texts: Tensor  #: of training and validation examples, as ``limbeck.texts`` packs them
    teachers: tuple[Encoded, Encoded, Encoded] | None = None  #: the splits in the teacher's tokens, if those are others
    more: tuple[Prepared, ...] = ()  #: the same job as each further teacher has it: its blueprint, its tokens

    @property
    def members(self) -> dict[str, Prepared]:
        """The job as each teacher has it, by the name of the teacher's phase: ``teacher``, or ``teacher-1`` and so on
        of several. Rows are the same examples in the same order."""
        if not self.more:
            return {"teacher": self.for_teacher}
        return {f"teacher-{number}": one for number, one in enumerate((self.for_teacher, *self.more), start=1)}

    @property
    def for_teacher(self) -> Prepared:
        """The same job with its splits as the teacher reads them; rows are the same examples in the same order."""
        if self.teachers is None:
            return self
        train, validation, test = self.teachers
        return replace(self, train=train, validation=validation, test=test)

    @property
    def reader(self) -> Blueprint:
        """The model whose tokenizer is the student's."""
        return self.blueprint if self.teachers is None else self.student.origin

    @property
    def own(self) -> Encoded:
        """The training split without what augmentation added."""
        return self._first(self.card.train)

    @property
    def labelled(self) -> Encoded:
        """The training split without texts that have no label."""
        return self._first(self.card.train + self.card.copies)

    def build(self, name: str, weights: dict[str, Tensor]) -> PreTrainedModel:
        """The finished model of the phase ``name``: a teacher's shape, or the student's, which is the baseline's."""
        if (member := self.members.get(name)) is not None:
            return member.blueprint.build(member.blueprint.layers, weights)
        return self.student.build(weights)

    def _first(self, count: int) -> Encoded:
        return self.train if count == self.train.examples else self.train.take(np.arange(count))


def prepare(run: Run, given: Mapping[str, Path], expected: Mapping[str, str] = MappingProxyType({})) -> Prepared:
    """Fetch, check and encode; what was encoded, now or by an earlier attempt, is mapped from the state.

    Args:
        expected: sha256 by ``dataset``, ``teacher``, ``teacher/more/0`` …, ``training/augmentation/0`` … (texts
            without labels), where a run repeats another.

    Raises:
        InvalidInput: naming the field, row or label that is wrong.
    """
    run.meter.enter(Stage.PREPARING)
    teachers = find_teachers(run, given)
    teacher = teachers[0]
    source, about = _read_once(run, teachers, given)
    tensors, stored = mapped_tensors(run.store.path("data"))
    card = DatasetCard.model_validate(stored["card"])
    chosen: Task = run.config.task or TASKS[stored["task"]]()
    task = chosen.for_data(pair=stored["pair"])
    vocabulary = Vocabulary(tensors["vocabulary"].numpy(), _full_size(teacher.path))
    blueprint = Blueprint.read(teacher.path, task, card.labels, vocabulary)
    others = tensors.get("student_vocabulary")
    plan = _student_plan(run, blueprint, card.labels, source, about, None if others is None else others.numpy())
    digests = {one.pointer.strip("/"): one.sha256() for one in teachers}
    _hold_digests(run, card, stored, teachers, digests, expected)
    kind = Pictures if task.reads == "image" else Encoded
    train, validation, test = _read_splits(kind, tensors)
    prepared = Prepared(
        task=task,
        blueprint=blueprint,
        card=card,
        pair=stored["pair"] and task.joined,
        train=train,
        validation=validation,
        test=test,
        student=plan,
        layers=plan.matched,
        finetune=teacher.finetune(task),
        keep_head=teacher.keeps_head(task, card.labels),
        teacher_revision=teacher.model.revision,
        teacher_sha256=digests["teacher"],
        texts=tensors["texts"],
        teachers=None if others is None else _read_splits(kind, tensors, "teacher."),
    )
    further = [_further(prepared, one, digests[one.pointer.strip("/")], tensors) for one in teachers[1:]]
    return replace(prepared, more=tuple(further))


def _read_once(
    run: Run, teachers: list[TeacherFolder], given: Mapping[str, Path]
) -> tuple[LocalModel | None, ModelFacts | None]:
    """Leave the encoded data in the state, unless an earlier attempt did; the student's own model, where it has one."""
    source = _student_source(run, given)
    about = None if source is None else model_facts(source.path)
    require_fit(run, teachers, about)
    if not run.store.has("data"):
        read_data(run, teachers, given, source, about)
        run.facts["teacher_revisions"] = [one.model.revision for one in teachers]
        run.facts["student_revision"] = None if source is None else source.revision
        run.commit()
    return source, about


def _hold_digests(
    run: Run,
    card: DatasetCard,
    stored: Mapping[str, Any],
    teachers: list[TeacherFolder],
    digests: Mapping[str, str],
    expected: Mapping[str, str],
) -> None:
    """Hold what was found against what is to be repeated, and say where all of it comes from."""
    extra = stored.get("unlabelled", {})
    extra_digests = {part: one["sha256"] for part, one in extra.items()}
    require_same(expected, {"dataset": card.sha256, **digests, **extra_digests})
    say_provenance(run, card, stored["revision"], teachers, list(digests.values()), extra)


def _further(job: Prepared, teacher: TeacherFolder, sha256: str, tensors: Mapping[str, Tensor]) -> Prepared:
    """The job as a further teacher has it: in the first one's tokens, or in its own where those are others."""
    view, name = job.for_teacher, teacher.pointer.strip("/")
    kept = tensors.get(f"{name}/vocabulary")
    whole = (view.train, view.validation, view.test)
    if kept is not None:
        whole = _read_splits(type(view.train), tensors, f"{name}/")
    own = view.blueprint.vocabulary.kept if kept is None else kept.numpy()
    vocabulary = Vocabulary(own, _full_size(teacher.path))
    first = view.blueprint.vocabulary.full_size
    if job.task.of_words and vocabulary.full_size != first:
        at = f"{teacher.pointer}/source"
        detail = (
            f"found a model whose word table has {vocabulary.full_size:,} rows; its answers are added to those of the "
            f"first teacher, whose table has {first:,}; allowed: a model with a table of that size"
        )
        raise InvalidConfig(f"{at}: {detail}", [Problem(at, detail)])
    train, validation, test = whole
    return replace(
        view,
        blueprint=Blueprint.read(teacher.path, job.task, job.card.labels, vocabulary),
        train=train,
        validation=validation,
        test=test,
        finetune=teacher.finetune(job.task),
        keep_head=teacher.keeps_head(job.task, job.card.labels),
        teacher_revision=teacher.model.revision,
        teacher_sha256=sha256,
        teachers=None,
    )


def _student_source(run: Run, given: Mapping[str, Path]) -> LocalModel | None:
    """The student's own folder, where it is a model of its own, at the commit that an earlier attempt found."""
    spec = run.config.student
    if spec.source is None:
        return None
    if (known := run.facts.get("student_revision")) is not None:
        spec = spec.model_copy(update={"revision": known})
    return sources.student_folder(spec, given, run.poll)


def _student_plan(
    run: Run,
    teacher: Blueprint,
    labels: tuple[str, ...],
    source: LocalModel | None,
    about: ModelFacts | None,
    kept: NDArray[np.int64] | None,
) -> StudentPlan:
    method = run.config.method
    spec = method.begin(method.student(run.config.student, teacher.layers), teacher.task)
    if source is None:
        spec = _as_begun(run, spec, config_facts_of(teacher.config))
    seed = run.config.training.seed
    if source is None or about is None:
        return StudentPlan.of(spec, teacher, seed=seed)
    full_size = _full_size(source.path)
    if teacher.task.of_words and full_size != teacher.vocabulary.full_size:
        detail = (
            f"found a model whose word table has {full_size:,} rows; its answers are compared with those of the "
            f"teacher, whose table has {teacher.vocabulary.full_size:,}"
        )
        raise InvalidConfig(f"/student/source: {detail}", [Problem("/student/source", detail)])
    vocabulary = Vocabulary(teacher.vocabulary.kept if kept is None else kept, full_size)
    own = Blueprint.read(source.path, teacher.task, labels, vocabulary)
    keep = about.has_head_for(teacher.task) and labels_agree(source.path, teacher.task, labels, must=False)
    return StudentPlan.of(spec, teacher, source=own, keep_head=keep, seed=seed)


def _as_begun(run: Run, spec: Student, teacher: ModelFacts) -> Student:
    """With the start of the layers that the run has begun with: a version of other defaults may have begun it."""
    begun = tuple(run.facts.get("provenance", {}).get("student_layers", ()))
    for init in ("skip", "uniform"):
        named = spec.model_copy(update={"init": init})
        if begun and spec.init is None and student_layers(named, teacher.layers, teacher.stages) == begun:
            return named
    return spec


def _full_size(folder: Path) -> int:
    """Of a model's vocabulary; 0 where it reads no tokens."""
    return int(getattr(read_config(folder), "vocab_size", 0))


def _read_splits(
    kind: type[Encoded], tensors: Mapping[str, Tensor], prefix: str = ""
) -> tuple[Encoded, Encoded, Encoded]:
    train, validation, test = (kind.from_tensors(below(tensors, f"{prefix}{split}")) for split in SPLITS)
    return train, validation, test


def below(tensors: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
    """Those of one split, by the rest of their names."""
    return {name.removeprefix(f"{split}."): value for name, value in tensors.items() if name.startswith(f"{split}.")}


def special_tokens(job: Prepared) -> SpecialTokens:
    """The tokenizer's special ids in the compact vocabulary, which keeps them all."""
    tokenizer = load_tokenizer(job.blueprint.folder, job.blueprint.config)
    places = {int(full): place for place, full in enumerate(job.blueprint.vocabulary.kept)}
    mask = tokenizer.mask_token_id
    return SpecialTokens(
        None if mask is None else places[mask], tuple(places[one] for one in tokenizer.all_special_ids)
    )
