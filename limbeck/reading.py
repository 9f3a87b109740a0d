"""The data set as the models of a job read it: texts become token ids, once, in each reader's compact vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck import copies, data, preflight, texts
from limbeck.cards import card_of, say_notes, shown
from limbeck.config import TASKS
from limbeck.errors import InvalidConfig, Problem
from limbeck.families import FAMILIES
from limbeck.picture_data import keep_pictures
from limbeck.run import Run
from limbeck.students import read_config
from limbeck.tasks.base import Task
from limbeck.tokenizing import further_tokenizer, load_tokenizer, other_tokenizer
from limbeck.trimming import kept_ids, trimmed, whole_ids
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from limbeck.batches import Encoded
    from limbeck.copies import Enlarged
    from limbeck.data import Corpus
    from limbeck.model_folder import ModelFacts
    from limbeck.scorecard import DatasetCard
    from limbeck.sources import LocalModel
    from limbeck.teachers import TeacherFolder

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a corpus with any tokenizer."""

    run: Run
    corpus: Corpus
    task: Task

    @property
    def length(self) -> int:
        return self.run.config.training.max_length

    def encode(self, tokenizer: Any, name: str) -> Encoded:
        split, labels = getattr(self.corpus, name), self.corpus.labels
        return self.task.encode(tokenizer, split, labels, self.length, self.run.poll)

    def splits(self, tokenizer: Any) -> dict[str, Encoded]:
        return {name: self.encode(tokenizer, name) for name in SPLITS}

    def alone(self, tokenizer: Any, facts: ModelFacts, full_size: int) -> tuple[dict[str, Encoded], Vocabulary]:
        """The splits in the tokens of one model, whose word table has so many rows."""
        whole = self.splits(tokenizer)
        return whole, _vocabulary(whole, tokenizer, full_size, FAMILIES[facts.model_type].offset)


def read_data(
    run: Run,
    teachers: Sequence[TeacherFolder],
    given: Mapping[str, Path],
    source: LocalModel | None,
    about: ModelFacts | None,
) -> None:
    """Load the data set and stage it as ``data``: the splits of every reader, the texts, and the card.

    Args:
        source: the student's folder, where it is a model of its own, and ``about`` it.

    Raises:
        InvalidInput: naming the field, row or label that is wrong.
    """
    seed, wanted = run.config.training.seed, run.config.task
    form = wanted.type if wanted else None
    corpus = data.load(run.config.dataset, seed=seed, sources=given, task=form, poll=run.poll)
    pair = corpus.train.pairs is not None
    require_fit(run, teachers, about, corpus.labels, corpus.task, pair)
    task: Task = (wanted or TASKS[corpus.task]()).for_data(pair=pair)
    if task.reads == "image":
        keep_pictures(run, corpus, task, teachers, source)
        return
    _read_texts(_Reader(run, corpus, task), teachers, given, source, about)


def _read_texts(
    reader: _Reader,
    teachers: Sequence[TeacherFolder],
    given: Mapping[str, Path],
    source: LocalModel | None,
    about: ModelFacts | None,
) -> None:
    run, corpus, task = reader.run, reader.corpus, reader.task
    tokenizer = load_tokenizer(teachers[0].path, read_config(teachers[0].path), task)
    further = {one.pointer: further_tokenizer(run.config, tokenizer, one, corpus, task) for one in teachers[1:]}
    other = None if source is None else other_tokenizer(run.config, tokenizer, source, corpus, task)
    whole = reader.splits(tokenizer)
    card, cut = card_of(corpus, task, whole["test"]), float(np.mean(whole["train"].lengths >= reader.length))
    enlarged = copies.enlarge(run, corpus, task, whole, teachers[0].path, tokenizer, given)
    whole["train"] = enlarged.train
    sharing = [one.facts for one in teachers if further.get(one.pointer) is None]
    vocabulary = _shared(run, task, whole, tokenizer, teachers[0].path, [one for one in (*sharing, about) if one])
    tensors: dict[str, Tensor] = {}
    for one in teachers:
        if (own := further.get(one.pointer)) is not None:
            tensors |= _in_own_tokens(reader, one, own)
    if other is not None and source is not None and about is not None:
        # What follows is the student's; the teacher's splits are set aside.
        tensors |= {"vocabulary": torch.from_numpy(vocabulary.kept)} | _split_tensors(whole, vocabulary, "teacher.")
        full_size = int(read_config(source.path).vocab_size)
        tokenizer, (whole, vocabulary) = other, reader.alone(other, about, full_size)
    if run.config.student.vocabulary == "trimmed":
        vocabulary = _trimmed(reader, tokenizer, whole, vocabulary)
    readable = {name: shown(task, getattr(corpus, name), corpus.labels) for name in ("train", "validation")}
    kept = torch.from_numpy(vocabulary.kept)
    tensors |= {"vocabulary" if other is None else "student_vocabulary": kept, "texts": texts.pack(readable)}
    tensors |= _split_tensors(whole, vocabulary)
    added = {"copies": enlarged.labelled - enlarged.originals, "unlabelled": len(enlarged.train) - enlarged.labelled}
    card = card.model_copy(update=added)
    run.store.write_tensors("data", tensors, _stored(corpus, card, enlarged.sources))
    _say_loaded(run, card, cut, whole["train"], len(vocabulary))
    say_notes(run, card)
    if run.config.training.augmentation:
        _say_enlarged(run, enlarged)


def _stored(corpus: Corpus, card: DatasetCard, unlabelled: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
    """What stands beside the tensors of ``data``."""
    return {
        "card": card.model_dump(mode="json"),
        "pair": corpus.train.pairs is not None,
        "revision": corpus.revision,
        "task": corpus.task,
        "unlabelled": unlabelled,
    }


def _vocabulary(whole: Mapping[str, Encoded], tokenizer: Any, full_size: int, offset: bool) -> Vocabulary:
    return Vocabulary.of(
        whole.values(),
        special=tokenizer.all_special_ids,
        pad_id=tokenizer.pad_token_id,
        full_size=full_size,
        offset=offset,
    )


def _shared(
    run: Run,
    task: Task,
    whole: Mapping[str, Encoded],
    tokenizer: Any,
    folder: Path,
    readers: Sequence[ModelFacts],
) -> Vocabulary:
    """Of the first teacher, and of all that read its tokens."""
    full_size = int(read_config(folder).vocab_size)
    if task.of_words and run.config.student.vocabulary == "full":
        return Vocabulary.whole(full_size)
    return _vocabulary(whole, tokenizer, full_size, any(FAMILIES[one.model_type].offset for one in readers))


def _trimmed(reader: _Reader, tokenizer: Any, whole: Mapping[str, Encoded], vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary of the student's own, small tokenizer.

    Copies and texts without labels, behind the train split's own, add to what it keeps and are not read again.

    Raises:
        InvalidConfig: it would read a text otherwise than the whole one does.
    """
    uncut = [whole_ids(tokenizer, getattr(reader.corpus, name), reader.run.poll) for name in SPLITS]
    vocabulary = replace(vocabulary, kept=kept_ids(tokenizer, np.concatenate([vocabulary.kept, *uncut])))
    small = trimmed(tokenizer, vocabulary.kept)
    for name, split in whole.items():
        own = split.take(np.arange(len(getattr(reader.corpus, name))))
        if not np.array_equal(reader.encode(small, name).ids, vocabulary.compact(own).ids):
            detail = f"found 'trimmed'; without the unused tokens a text of the {name} split would be read otherwise"
            raise InvalidConfig(f"/student/vocabulary: {detail}", [Problem("/student/vocabulary", detail)])
    return vocabulary


def _in_own_tokens(reader: _Reader, teacher: TeacherFolder, tokenizer: Any) -> dict[str, Tensor]:
    """The splits of a further teacher, below its name."""
    name, full_size = teacher.pointer.strip("/"), int(read_config(teacher.path).vocab_size)
    whole, vocabulary = reader.alone(tokenizer, teacher.facts, full_size)
    kept = {f"{name}/vocabulary": torch.from_numpy(vocabulary.kept)}
    return kept | _split_tensors(whole, vocabulary, f"{name}/")


def _split_tensors(whole: Mapping[str, Encoded], vocabulary: Vocabulary, prefix: str = "") -> dict[str, Tensor]:
    """The splits in compact ids, by ``{prefix}{split}.{part}``."""
    return {
        f"{prefix}{name}.{part}": value
        for name, split in whole.items()
        for part, value in vocabulary.compact(split).tensors().items()
    }


def _say_loaded(run: Run, card: DatasetCard, cut: float, train: Encoded, words: int) -> None:
    classes = f" of {len(card.labels)} labels" if card.labels else ""
    run.event(
        "data.loaded",
        f"{card.train:,} training, {card.validation:,} validation and {card.test:,} test examples{classes}; "
        f"{100 * cut:.1f} % of the training texts fill {run.config.training.max_length} tokens or are cut there",
        train=card.train,
        validation=card.validation,
        test=card.test,
        labels=len(card.labels),
        tokens=int(train.take(np.arange(card.train)).lengths.sum()),
        vocabulary=words,
    )


def _say_enlarged(run: Run, enlarged: Enlarged) -> None:
    added = ", ".join(f"{count:,} by {name}" for name, count in enlarged.counts.items())
    left_out = f"; {enlarged.held_out:,} more stand in validation or test and are left out" * bool(enlarged.held_out)
    run.event(
        "data.augmented",
        f"The student learns from {len(enlarged.train) - enlarged.originals:,} more examples: {added}{left_out}",
        **enlarged.counts,
        held_out=enlarged.held_out,
    )


def require_fit(
    run: Run,
    teachers: Sequence[TeacherFolder],
    student: ModelFacts | None,
    labels: tuple[str, ...] | None = None,
    task: str | None = None,
    pair: bool | None = None,
) -> None:
    """Hold the configuration against its models, and against its data set once that is known.

    Raises:
        InvalidConfig: naming each field.
    """
    facts, *more = (one.facts for one in teachers)
    problems = preflight.check(
        run.config, teacher=facts, labels=labels, student=student, task=task, pair=pair, more=more
    )
    if problems:
        raise InvalidConfig("; ".join(f"{p.pointer}: {p.detail}" for p in problems), problems)
