"""The first phase: the teacher's folder and the data set are fetched and checked, and texts become token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck import copies, data, preflight, sources, texts
from limbeck.batches import Encoded
from limbeck.callbacks import Stage
from limbeck.cards import card_of, shown
from limbeck.config import TASKS
from limbeck.errors import InvalidConfig, Problem
from limbeck.families import FAMILIES
from limbeck.methods.base import SpecialTokens
from limbeck.picture_data import keep_pictures
from limbeck.pictures import Pictures
from limbeck.provenance import require_same, say_provenance
from limbeck.run import Run
from limbeck.scorecard import DatasetCard
from limbeck.student_plan import StudentPlan
from limbeck.students import Blueprint, read_config
from limbeck.tasks.base import Task
from limbeck.teachers import TeacherFolder, find_teachers, labels_agree
from limbeck.tokenizing import further_tokenizer, load_tokenizer, other_tokenizer
from limbeck.trimming import kept_ids, trimmed
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.config import FineTune
    from limbeck.copies import Enlarged
    from limbeck.data import Corpus
    from limbeck.sources import LocalModel, ModelFacts

_SPLITS = ("train", "validation", "test")


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
        return self.train if count == len(self.train) else self.train.take(np.arange(count))


def prepare(run: Run, given: Mapping[str, Path], expected: Mapping[str, str] = MappingProxyType({})) -> Prepared:
    """Fetch, check and encode; what an earlier attempt encoded is read from the state.

    Args:
        expected: sha256 by ``dataset``, ``teacher``, ``teacher/more/0`` …, where a run repeats another.

    Raises:
        InvalidInput: naming the field, row or label that is wrong.
    """
    run.meter.enter(Stage.PREPARING)
    teachers = find_teachers(run, given)
    teacher = teachers[0]
    source = _student_source(run, given)
    about = None if source is None else sources.model_facts(source.path)
    _preflight(run, teachers, None, about, None)
    if not run.store.has("data"):
        _encode(run, teachers, given, source, about)
        run.facts["teacher_revisions"] = [one.model.revision for one in teachers]
        run.facts["student_revision"] = None if source is None else source.revision
        run.commit()
    tensors, stored = run.store.read_tensors("data")
    card = DatasetCard.model_validate(stored["card"])
    chosen: Task = run.config.task or TASKS[stored["task"]]()
    task = chosen.for_data(pair=stored["pair"])
    vocabulary = Vocabulary(tensors["vocabulary"].numpy(), _full_size(teacher.path))
    blueprint = Blueprint.read(teacher.path, task, card.labels, vocabulary)
    others = tensors.get("student_vocabulary")
    plan = _student_plan(run, blueprint, card.labels, source, about, None if others is None else others.numpy())
    digests = {one.pointer.strip("/"): one.sha256() for one in teachers}
    require_same(expected, {"dataset": card.sha256, **digests})
    say_provenance(run, card, stored["revision"], teachers, list(digests.values()))
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


def _further(job: Prepared, teacher: TeacherFolder, sha256: str, tensors: Mapping[str, Tensor]) -> Prepared:
    """The job as a further teacher has it: in the first one's tokens, or in its own where those are others."""
    view, name = job.for_teacher, teacher.pointer.strip("/")
    kept = tensors.get(f"{name}/vocabulary")
    whole = _read_splits(Encoded, tensors, f"{name}/") if kept is not None else (view.train, view.validation, view.test)
    full_size = int(read_config(teacher.path).vocab_size)
    vocabulary = Vocabulary(view.blueprint.vocabulary.kept if kept is None else kept.numpy(), full_size)
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


def _encode(
    run: Run,
    teachers: Sequence[TeacherFolder],
    given: Mapping[str, Path],
    source: LocalModel | None,
    about: ModelFacts | None,
) -> None:
    seed = run.config.training.seed
    wanted = run.config.task
    form = wanted.type if wanted else None
    corpus = data.load(run.config.dataset, seed=seed, sources=given, task=form, poll=run.poll)
    pair = corpus.train.pairs is not None
    _preflight(run, teachers, corpus.labels, about, corpus.task, pair)
    chosen: Task = wanted or TASKS[corpus.task]()
    task = chosen.for_data(pair=pair)
    teacher = teachers[0].path
    if task.reads == "image":
        keep_pictures(run, corpus, task, teacher, source)
        return
    config = read_config(teacher)
    tokenizer = load_tokenizer(teacher, config, task)
    further = {one.pointer: further_tokenizer(run.config, tokenizer, one, corpus, task) for one in teachers[1:]}
    other = None if source is None else other_tokenizer(run.config, tokenizer, source, corpus, task)
    length = run.config.training.max_length
    whole = {name: task.encode(tokenizer, getattr(corpus, name), corpus.labels, length, run.poll) for name in _SPLITS}
    card, cut = card_of(corpus, task, whole["test"]), float(np.mean(whole["train"].lengths >= length))
    enlarged = copies.enlarge(run, corpus, whole, teacher, tokenizer, given)
    whole["train"] = enlarged.train
    sharing = [one for one in teachers if further.get(one.pointer) is None]
    vocabulary = Vocabulary.of(
        whole.values(),
        special=tokenizer.all_special_ids,
        pad_id=tokenizer.pad_token_id,
        full_size=int(config.vocab_size),
        offset=any(FAMILIES[one.model_type].offset for one in (*(one.facts for one in sharing), about) if one),
    )
    if task.of_words and run.config.student.vocabulary == "full":
        vocabulary = Vocabulary.whole(int(config.vocab_size))
    tensors: dict[str, Tensor] = {}
    for one in teachers:
        if (own := further.get(one.pointer)) is not None:
            tensors |= _in_own_tokens(run, one, own, corpus, task)
    if other is not None and source is not None and about is not None:
        # What follows is the student's; the teacher's splits are set aside.
        tensors |= {"vocabulary": torch.from_numpy(vocabulary.kept)} | _split_tensors(whole, vocabulary, "teacher.")
        tokenizer, config = other, read_config(source.path)
        whole, vocabulary = _read_by(run, other, about, int(config.vocab_size), corpus, task)
    if run.config.student.vocabulary == "trimmed":
        vocabulary = replace(vocabulary, kept=kept_ids(tokenizer, vocabulary.kept))
        small = trimmed(tokenizer, vocabulary.kept)
        for name, split in whole.items():
            again = task.encode(small, getattr(corpus, name), corpus.labels, length, run.poll)
            if not np.array_equal(again.ids, vocabulary.compact(split).ids):
                detail = (
                    f"found 'trimmed'; without the unused tokens a text of the {name} split would be read otherwise"
                )
                raise InvalidConfig(f"/student/vocabulary: {detail}", [Problem("/student/vocabulary", detail)])
    readable = {name: shown(task, getattr(corpus, name), corpus.labels) for name in ("train", "validation")}
    kept = torch.from_numpy(vocabulary.kept)
    tensors |= {"vocabulary" if other is None else "student_vocabulary": kept, "texts": texts.pack(readable)}
    tensors |= _split_tensors(whole, vocabulary)
    card = card.model_copy(
        update={
            "copies": enlarged.labelled - enlarged.originals,
            "unlabelled": len(enlarged.train) - enlarged.labelled,
        }
    )
    stored = {
        "card": card.model_dump(mode="json"),
        "pair": pair,
        "revision": corpus.revision,
        "task": corpus.task,
    }
    run.store.write_tensors("data", tensors, stored)
    classes = f" of {len(card.labels)} labels" if card.labels else ""
    run.event(
        "data.loaded",
        f"{card.train:,} training, {card.validation:,} validation and {card.test:,} test examples{classes}; "
        f"{100 * cut:.1f} % of the training texts fill {length} tokens or are cut there",
        train=card.train,
        validation=card.validation,
        test=card.test,
        labels=len(card.labels),
        tokens=int(whole["train"].take(np.arange(card.train)).lengths.sum()),
        vocabulary=len(vocabulary),
    )
    if run.config.training.augmentation:
        _say_enlarged(run, enlarged)


def _full_size(folder: Path) -> int:
    """Of a model's vocabulary; 0 where it reads no tokens."""
    return int(getattr(read_config(folder), "vocab_size", 0))


def _read_by(
    run: Run, tokenizer: Any, facts: ModelFacts, full_size: int, corpus: Corpus, task: Task
) -> tuple[dict[str, Encoded], Vocabulary]:
    """The splits in the tokens of one model alone."""
    length = run.config.training.max_length
    whole = {name: task.encode(tokenizer, getattr(corpus, name), corpus.labels, length, run.poll) for name in _SPLITS}
    vocabulary = Vocabulary.of(
        whole.values(),
        special=tokenizer.all_special_ids,
        pad_id=tokenizer.pad_token_id,
        full_size=full_size,
        offset=FAMILIES[facts.model_type].offset,
    )
    return whole, vocabulary


def _in_own_tokens(run: Run, teacher: TeacherFolder, tokenizer: Any, corpus: Corpus, task: Task) -> dict[str, Tensor]:
    """The splits of a further teacher, below its name."""
    name = teacher.pointer.strip("/")
    full_size = int(read_config(teacher.path).vocab_size)
    whole, vocabulary = _read_by(run, tokenizer, teacher.facts, full_size, corpus, task)
    kept = {f"{name}/vocabulary": torch.from_numpy(vocabulary.kept)}
    return kept | _split_tensors(whole, vocabulary, f"{name}/")


def _split_tensors(whole: Mapping[str, Encoded], vocabulary: Vocabulary, prefix: str = "") -> dict[str, Tensor]:
    """The splits in compact ids, by ``{prefix}{split}.{part}``."""
    return {
        f"{prefix}{name}.{part}": value
        for name, split in whole.items()
        for part, value in vocabulary.compact(split).tensors().items()
    }


def _read_splits(
    kind: type[Encoded], tensors: Mapping[str, Tensor], prefix: str = ""
) -> tuple[Encoded, Encoded, Encoded]:
    train, validation, test = (kind.from_tensors(below(tensors, f"{prefix}{split}")) for split in _SPLITS)
    return train, validation, test


def _say_enlarged(run: Run, enlarged: Enlarged) -> None:
    added = ", ".join(f"{count:,} by {name}" for name, count in enlarged.counts.items())
    left_out = f"; {enlarged.held_out:,} more stand in validation or test and are left out" * bool(enlarged.held_out)
    run.event(
        "data.augmented",
        f"The student learns from {len(enlarged.train) - enlarged.originals:,} more examples: {added}{left_out}",
        **enlarged.counts,
        held_out=enlarged.held_out,
    )


def _preflight(
    run: Run,
    teachers: Sequence[TeacherFolder],
    labels: tuple[str, ...] | None,
    student: ModelFacts | None,
    task: str | None,
    pair: bool | None = None,
) -> None:
    facts, *more = (one.facts for one in teachers)
    problems = preflight.check(
        run.config, teacher=facts, labels=labels, student=student, task=task, pair=pair, more=more
    )
    if problems:
        raise InvalidConfig("; ".join(f"{p.pointer}: {p.detail}" for p in problems), problems)


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
