"""The first phase: the teacher's folder and the data set are fetched and checked, and texts become token ids."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck import copies, data, evaluate, preflight, sources, texts
from limbeck.batches import Encoded
from limbeck.callbacks import Stage
from limbeck.config import TASKS, FineTune
from limbeck.device import installed
from limbeck.errors import InvalidConfig, InvalidDataset, InvalidModel, Problem
from limbeck.families import FAMILIES
from limbeck.methods.base import SpecialTokens
from limbeck.run import Run
from limbeck.scorecard import DatasetCard
from limbeck.student_plan import StudentPlan
from limbeck.students import Blueprint, label_order, read_config
from limbeck.tasks.base import Task
from limbeck.tokenizing import load_tokenizer, other_tokenizer
from limbeck.trimming import kept_ids, trimmed
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.copies import Enlarged
    from limbeck.data import Corpus, Split
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
        """The finished model of the phase ``name``: the teacher's shape, or the student's, which is the baseline's."""
        if name == "teacher":
            return self.blueprint.build(self.blueprint.layers, weights)
        return self.student.build(weights)

    def _first(self, count: int) -> Encoded:
        return self.train if count == len(self.train) else self.train.take(np.arange(count))


def prepare(run: Run, given: Mapping[str, Path], expected: Mapping[str, str] = MappingProxyType({})) -> Prepared:
    """Fetch, check and encode; what an earlier attempt encoded is read from the state.

    Args:
        expected: sha256 by ``dataset`` and ``teacher``, where a run repeats another.

    Raises:
        InvalidInput: naming the field, row or label that is wrong.
    """
    run.meter.enter(Stage.PREPARING)
    spec = run.config.teacher
    if (known := run.facts.get("teacher_revision")) is not None:
        spec = spec.model_copy(update={"revision": known})
    teacher = sources.teacher_folder(spec, given)
    facts = sources.model_facts(teacher.path)
    source = _student_source(run, given)
    about = None if source is None else sources.model_facts(source.path)
    _preflight(run, facts, None, about, None)
    if not run.store.has("data"):
        _encode(run, teacher.path, facts, given, source, about)
        run.facts["teacher_revision"] = teacher.revision
        run.facts["student_revision"] = None if source is None else source.revision
        run.commit()
    tensors, stored = run.store.read_tensors("data")
    card = DatasetCard.model_validate(stored["card"])
    chosen: Task = run.config.task or TASKS[stored["task"]]()
    task = chosen.for_data(pair=stored["pair"])
    vocabulary = Vocabulary(tensors["vocabulary"].numpy(), int(read_config(teacher.path).vocab_size))
    blueprint = Blueprint.read(teacher.path, task, card.labels, vocabulary)
    others = tensors.get("student_vocabulary")
    plan = _student_plan(run, blueprint, card.labels, source, about, None if others is None else others.numpy())
    finetune = _finetune(run, facts, task)
    sha256 = _weights_sha256(teacher.path)
    _require_same(expected, {"dataset": card.sha256, "teacher": sha256})
    _say_provenance(run, card, stored["revision"], teacher.revision, sha256)
    train, validation, test = _read_splits(tensors)
    return Prepared(
        task=task,
        blueprint=blueprint,
        card=card,
        pair=stored["pair"] and task.joined,
        train=train,
        validation=validation,
        test=test,
        student=plan,
        layers=plan.matched,
        finetune=finetune,
        keep_head=facts.has_head_for(task) and _labels_agree(teacher.path, task, card.labels, must=finetune is None),
        teacher_revision=teacher.revision,
        teacher_sha256=sha256,
        texts=tensors["texts"],
        teachers=None if others is None else _read_splits(tensors, "teacher."),
    )


def _student_source(run: Run, given: Mapping[str, Path]) -> LocalModel | None:
    """The student's own folder, where it is a model of its own, at the commit that an earlier attempt found."""
    spec = run.config.student
    if spec.source is None:
        return None
    if (known := run.facts.get("student_revision")) is not None:
        spec = spec.model_copy(update={"revision": known})
    return sources.student_folder(spec, given)


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
    full_size = int(read_config(source.path).vocab_size)
    if teacher.task.of_words and full_size != teacher.vocabulary.full_size:
        detail = (
            f"found a model whose word table has {full_size:,} rows; its answers are compared with those of the "
            f"teacher, whose table has {teacher.vocabulary.full_size:,}"
        )
        raise InvalidConfig(f"/student/source: {detail}", [Problem("/student/source", detail)])
    vocabulary = Vocabulary(teacher.vocabulary.kept if kept is None else kept, full_size)
    own = Blueprint.read(source.path, teacher.task, labels, vocabulary)
    keep = about.has_head_for(teacher.task) and _labels_agree(source.path, teacher.task, labels, must=False)
    return StudentPlan.of(spec, teacher, source=own, keep_head=keep, seed=seed)


def _encode(
    run: Run,
    teacher: Path,
    facts: ModelFacts,
    given: Mapping[str, Path],
    source: LocalModel | None,
    about: ModelFacts | None,
) -> None:
    seed = run.config.training.seed
    wanted = run.config.task
    corpus = data.load(run.config.dataset, seed=seed, sources=given, task=wanted.type if wanted else None)
    pair = corpus.train.pairs is not None
    _preflight(run, facts, corpus.labels, about, corpus.task, pair)
    chosen: Task = wanted or TASKS[corpus.task]()
    task = chosen.for_data(pair=pair)
    config = read_config(teacher)
    tokenizer = load_tokenizer(teacher, config, task)
    other = None if source is None else other_tokenizer(run.config, tokenizer, source, corpus, task)
    length = run.config.training.max_length
    whole = {name: task.encode(tokenizer, getattr(corpus, name), corpus.labels, length, run.poll) for name in _SPLITS}
    card, cut = _card(corpus, task, whole["test"]), float(np.mean(whole["train"].lengths >= length))
    enlarged = copies.enlarge(run, corpus, whole, teacher, tokenizer, given)
    whole["train"] = enlarged.train
    vocabulary = Vocabulary.of(
        whole.values(),
        special=tokenizer.all_special_ids,
        pad_id=tokenizer.pad_token_id,
        full_size=int(config.vocab_size),
        offset=any(FAMILIES[one.model_type].offset for one in (facts, about) if one is not None),
    )
    if task.of_words and run.config.student.vocabulary == "full":
        vocabulary = Vocabulary.whole(int(config.vocab_size))
    tensors: dict[str, Tensor] = {}
    if other is not None and source is not None and about is not None:
        # What follows is the student's; the teacher's splits are set aside.
        tensors |= {"vocabulary": torch.from_numpy(vocabulary.kept)} | _split_tensors(whole, vocabulary, "teacher.")
        tokenizer, config = other, read_config(source.path)
        whole = {name: task.encode(other, getattr(corpus, name), corpus.labels, length, run.poll) for name in _SPLITS}
        vocabulary = Vocabulary.of(
            whole.values(),
            special=other.all_special_ids,
            pad_id=other.pad_token_id,
            full_size=int(config.vocab_size),
            offset=FAMILIES[about.model_type].offset,
        )
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
    readable = {name: _shown(task, getattr(corpus, name), corpus.labels) for name in ("train", "validation")}
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


def _split_tensors(whole: Mapping[str, Encoded], vocabulary: Vocabulary, prefix: str = "") -> dict[str, Tensor]:
    """The splits in compact ids, by ``{prefix}{split}.{part}``."""
    return {
        f"{prefix}{name}.{part}": value
        for name, split in whole.items()
        for part, value in vocabulary.compact(split).tensors().items()
    }


def _read_splits(tensors: Mapping[str, Tensor], prefix: str = "") -> tuple[Encoded, Encoded, Encoded]:
    train, validation, test = (Encoded.from_tensors(below(tensors, f"{prefix}{split}")) for split in _SPLITS)
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


def _shown(task: Task, split: Split, labels: Sequence[str]) -> list[texts.Shown]:
    """For the table of hard samples, which vectors do not have."""
    if task.kind == "vector":
        return []
    return texts.shown(split.texts, split.pairs, split.labels, labels)


def _card(corpus: Corpus, task: Task, test: Encoded) -> DatasetCard:
    truth = task.truth(test)
    return DatasetCard(
        source=corpus.source,
        sha256=corpus.sha256,
        train=len(corpus.train),
        validation=len(corpus.validation),
        test=len(corpus.test),
        labels=corpus.labels,
        majority=evaluate.score(task.main_metric, task.guess(truth), truth),
    )


def _preflight(
    run: Run,
    facts: ModelFacts,
    labels: tuple[str, ...] | None,
    student: ModelFacts | None,
    task: str | None,
    pair: bool | None = None,
) -> None:
    problems = preflight.check(run.config, teacher=facts, labels=labels, student=student, task=task, pair=pair)
    if problems:
        raise InvalidConfig("; ".join(f"{p.pointer}: {p.detail}" for p in problems), problems)


def _finetune(run: Run, facts: ModelFacts, task: Task) -> FineTune | None:
    wanted, has_head = run.config.teacher.finetune, facts.has_head_for(task)
    if isinstance(wanted, FineTune):
        return wanted
    if wanted is False and not has_head:
        detail = f"found false; this teacher has no head for {task.type}, so that it has to be fine-tuned: true"
        raise InvalidConfig(f"/teacher/finetune: {detail}", [Problem("/teacher/finetune", detail)])
    return FineTune() if wanted or not has_head else None


def _labels_agree(teacher: Path, task: Task, labels: tuple[str, ...], *, must: bool) -> bool:
    """Whether the teacher's head answers with the data set's labels; where it ``must``, raises InvalidModel if not."""
    config = read_config(teacher)
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


def _require_same(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse to repeat a run on other data or from another teacher: their names stay when what they name changes."""
    for part, refusal, what in (("dataset", InvalidDataset, "data set"), ("teacher", InvalidModel, "teacher")):
        wanted = expected.get(part)
        if wanted is not None and wanted != found[part]:
            detail = (
                f"the {what} is no longer the one that the first run had: found the sha256 {found[part]}, and it has "
                f"to be {wanted}; submit a new job to train on what is there now"
            )
            raise refusal(f"/{part}/source: {detail}", [Problem(f"/{part}/source", detail)])


def _require_outputs(found: int, wanted: int) -> None:
    if found != wanted:
        raise InvalidModel(
            f"The teacher's head has {found} outputs and needs {wanted}; let the job fine-tune it: "
            "teacher.finetune = true."
        )


def _say_provenance(
    run: Run, card: DatasetCard, dataset_revision: str | None, teacher_revision: str | None, teacher_sha256: str
) -> None:
    packages = ("limbeck", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")
    if run.config.student.source is not None:
        run.provenance(student={"source": run.config.student.source, "revision": run.facts["student_revision"]})
    run.provenance(
        dataset={"source": card.source, "revision": dataset_revision, "sha256": card.sha256},
        teacher={"source": run.config.teacher.source, "revision": teacher_revision, "sha256": teacher_sha256},
        seed=run.config.training.seed,
        hardware=run.device.hardware().model_dump(mode="json"),
        python=platform.python_version(),
        packages={name: installed(name) for name in packages},
    )


def _weights_sha256(folder: Path) -> str:
    """Of the one safetensors file, or of the list of several files' hashes."""
    digests = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


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
