"""More training texts than the data set has: the choices of ``training.augmentation`` that make copies of its own.

(The third, ``unlabelled``, names another source of texts and stands in ``limbeck/dataset_spec.py``.) Copies are made
once, while a job prepares, by the training seed, so that the teacher's kept answers serve every epoch. They carry the
label of the text that they are made from, or none, come from the training split alone, and none that is a held-out text
stays in.

Imports no torch: the API process reads these options.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from limbeck.errors import Problem
from limbeck.spec import Spec

#: Tasks whose label is of a text, or a pair, as a whole, so that it still fits when words are replaced or sentences
#: change places.
WHOLE_TEXT = ("sequence_classification", "multi_label", "regression")


class BaseAugmentation(Spec, ABC):
    """Options of an augmentation."""

    shorthand: ClassVar[str | None] = "type"
    #: The types of the tasks that it can serve.
    tasks: ClassVar[tuple[str, ...]] = WHOLE_TEXT

    type: Any

    @property
    def has_labels(self) -> bool:
        """Whether its texts have labels; the student learns the teacher's answers alone to those that have none."""
        return True

    def problems(self, *, at: str, task: str, labels_alone: bool, method: str) -> Iterator[Problem]:
        """What forbids this augmentation for such a task and method.

        Args:
            at: its own JSON pointer.
            labels_alone: whether the method, or a part of it, learns from the true labels and nothing else.
        """
        if task not in self.tasks:
            yield Problem(
                at,
                f"found {self.type!r}, whose texts would not fit the labels of {task!r}; allowed for "
                f"{', '.join(self.tasks)}",
            )
        if labels_alone and not self.has_labels:
            yield Problem(
                at,
                f"found {self.type!r}, whose texts have no label; the method {method!r} with these options learns, in "
                "one part at least, from labels alone",
            )


class SentenceShuffle(BaseAugmentation):
    """Copies of each text with its sentences in another order; a text of one sentence gets none."""

    type: Literal["sentence_shuffle"] = "sentence_shuffle"
    copies: int = Field(default=1, ge=1, le=50)
    """Copies of each text; fewer where it has not as many orders."""
    repeats: int = Field(default=1, ge=1, le=10)
    """How often each sentence stands in a copy."""


class MaskReplace(BaseAugmentation):
    """Copies of each text in which some words are others that would fit there: those that the teacher's own masked-LM
    head finds likely, where its folder has one, else the neighbours in its embedding table.

    Jiao et al. 2020 (TinyBERT, arXiv:1909.10351), whose 20 copies cost 20 times the steps of an epoch. Words are those
    of a single token, in Chinese and Japanese all of its tokens. A neighbour may be the opposite: the teacher's answers
    know that, the copied label does not (``keep_labels``).
    """

    type: Literal["mask_replace"] = "mask_replace"
    copies: int = Field(default=1, ge=1, le=50)
    """Copies of each text; fewer where it has no word that can be replaced."""
    p: float = Field(default=0.4, gt=0, le=1)
    """Chance of a word to be replaced."""
    candidates: int = Field(default=15, ge=1, le=200)
    """So many words share the chance to take its place."""
    keep_labels: bool = True
    """Whether a copy has its text's label. Where it has none the student learns the teacher's answer to it alone, and
    the baseline, which has no teacher, takes as many steps over the other texts."""

    @property
    def has_labels(self) -> bool:
        return self.keep_labels
