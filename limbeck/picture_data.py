"""Images of a data set as a job's state holds them: where texts become token ids, these become pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck import texts
from limbeck.cards import card_of, shown
from limbeck.runtime.images import Preparation
from limbeck.tokenizing import require_answers_alone

if TYPE_CHECKING:
    from limbeck.data import Corpus
    from limbeck.run import Run
    from limbeck.sources import LocalModel
    from limbeck.tasks.base import Task

_SPLITS = ("train", "validation", "test")


def keep_pictures(run: Run, corpus: Corpus, task: Task, teacher: Path, source: LocalModel | None) -> None:
    """Decode the splits in the teacher's size and range, and stage them; where a student that is a model of its own has
    others, in those as well.

    Raises:
        InvalidDataset: an image cannot be decoded.
        InvalidModel: a model prepares images in a way that is not known.
        InvalidConfig: student and teacher would have to read the same pixels.
    """
    readings = {"": Preparation.read(teacher)}
    if source is not None and (other := Preparation.read(source.path)) != readings[""]:
        require_answers_alone(run.config)
        readings = {"teacher.": readings[""], "": other}
    readable = {name: shown(task, getattr(corpus, name), corpus.labels) for name in ("train", "validation")}
    none = torch.empty(0, dtype=torch.int64)
    tensors = {"vocabulary": none, "texts": texts.pack(readable)}
    tensors |= {"student_vocabulary": none} if len(readings) > 1 else {}
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
        f"{len(card.labels)} labels, read as {reading.height} × {reading.width} pixels",
        train=card.train,
        validation=card.validation,
        test=card.test,
        labels=len(card.labels),
    )
