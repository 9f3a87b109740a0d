"""Images of a data set as a job's state holds them: where texts become token ids, these become pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from limbeck import texts
from limbeck.cards import card_of, say_notes, shown
from limbeck.runtime.images import Preparation
from limbeck.tokenizing import require_answers_alone

if TYPE_CHECKING:
    from limbeck.data import Corpus
    from limbeck.run import Run
    from limbeck.sources import LocalModel
    from limbeck.tasks.base import Task
    from limbeck.teachers import TeacherFolder

_SPLITS = ("train", "validation", "test")


def keep_pictures(
    run: Run, corpus: Corpus, task: Task, teachers: Sequence[TeacherFolder], source: LocalModel | None
) -> None:
    """Decode the splits in the first teacher's size and range, and stage them; where another teacher, or a student that
    is a model of its own, has others, in those as well.

    Raises:
        InvalidDataset: an image cannot be decoded.
        InvalidModel: a model prepares images in a way that is not known.
        InvalidConfig: student and teacher would have to read the same pixels.
    """
    first = Preparation.read(teachers[0].path)
    readings, none = {"": first}, torch.empty(0, dtype=torch.int64)
    readable = {name: shown(task, getattr(corpus, name), corpus.labels) for name in ("train", "validation")}
    tensors = {"vocabulary": none, "texts": texts.pack(readable)}
    if source is not None and (own := Preparation.read(source.path)) != first:
        require_answers_alone(run.config)
        readings = {"teacher.": first, "": own}
        tensors["student_vocabulary"] = none
    for teacher in teachers[1:]:
        if (further := Preparation.read(teacher.path)) != first:
            name = teacher.pointer.strip("/")
            readings[f"{name}/"] = further
            tensors[f"{name}/vocabulary"] = none
    for prefix, reading in readings.items():
        for name in _SPLITS:
            split = task.encode(reading, getattr(corpus, name), corpus.labels, 0, run.poll)
            tensors |= {f"{prefix}{name}.{part}": value for part, value in split.tensors().items()}
    card = card_of(corpus, task, split)
    stored = {"card": card.model_dump(mode="json"), "pair": False, "revision": corpus.revision, "task": corpus.task}
    run.store.write_tensors("data", tensors, stored)
    run.event(
        "data.loaded",
        f"{card.train:,} training, {card.validation:,} validation and {card.test:,} test images of "
        f"{len(card.labels)} labels, read as {readings[''].height} × {readings[''].width} pixels",
        train=card.train,
        validation=card.validation,
        test=card.test,
        labels=len(card.labels),
    )
    say_notes(run, card)
