"""What is said of a job's data: counts and labels for the scorecard, and examples as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from limbeck import evaluate, texts
from limbeck.scorecard import DatasetCard

if TYPE_CHECKING:
    from limbeck.batches import Encoded
    from limbeck.data import Corpus, Split
    from limbeck.run import Run
    from limbeck.tasks.base import Task


def shown(task: Task, split: Split, labels: Sequence[str]) -> list[texts.Shown]:
    """For the table of hard samples, which vectors do not have."""
    if task.kind == "vector":
        return []
    return texts.shown(split.texts, split.pairs, split.labels, labels)


def card_of(corpus: Corpus, task: Task, test: Encoded) -> DatasetCard:
    truth = task.truth(test)
    return DatasetCard(
        source=corpus.source,
        sha256=corpus.sha256,
        train=len(corpus.train),
        validation=len(corpus.validation),
        test=len(corpus.test),
        labels=corpus.labels,
        majority=evaluate.score(task.main_metric, task.guess(truth), truth),
        notes=corpus.notes,
    )


def say_notes(run: Run, card: DatasetCard) -> None:
    """What was done to the data, if anything: that a split serves as another, or texts stand in two, has to be seen."""
    if card.notes:
        run.event("data.noted", " ".join(card.notes))
