"""Texts of many requests between the layers of one student with early exits.

A text whose layer is sure of it leaves, and a question is answered as soon as all of its texts have left; the others go
on with whoever waits at the same layer (``limbeck/runtime/layers.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.runtime.layers import Layers, Text

if TYPE_CHECKING:
    from api.inference.batcher import Waiting
    from limbeck.runtime import Predictor


@dataclass(eq=False, slots=True)
class Asked:
    """A question whose texts are under way; each of them has (this, its place) as its owner."""

    waiting: Waiting
    logits: dict[int, NDArray[np.float32]] = field(
        default_factory=dict
    )  #: (classes,) of those that have left, by place


@dataclass(slots=True)
class Pass:
    """What came of one call."""

    left: list[Text] = field(default_factory=list)
    staying: list[Text] = field(default_factory=list)
    failed: list[tuple[Text, Exception]] = field(default_factory=list)


class Layered:
    """What is under way of one student's texts.

    :meth:`coded`, :meth:`run` and :meth:`shaped` compute, and may be called by several threads at once; everything else
    is called by the one that holds the batcher's lock.
    """

    def __init__(self, student: Predictor) -> None:
        assert student.exits is not None  # the caller has looked
        self._student, self._exits = student, student.exits
        self._layers = Layers()
        #: Questions that somebody waits for. What is still under way of others is dropped where it is met.
        self._open: set[Waiting] = set()
        self.texts = 0  #: that are under way

    @property
    def ready(self) -> bool:
        """Whether there is something to :meth:`take`."""
        return bool(self._layers)

    @property
    def turn(self) -> int:
        """Calls that are one turn: as many as bring a text that never leaves early through."""
        return self._exits.layers

    def begin(self, window: Sequence[Waiting]) -> None:
        """Questions whose texts are about to come in."""
        self._open.update(window)
        self.texts += sum(len(one.question) for one in window)

    def coded(self, window: Sequence[Waiting]) -> list[tuple[Waiting, list[Text] | Exception]]:
        """Each with its texts as tokens, or with what is wrong with it."""
        return [(one, self._coded(one)) for one in window]

    def _coded(self, one: Waiting) -> list[Text] | Exception:
        asked = Asked(one)
        try:
            return self._student.coded(one.question, [(asked, place) for place in range(len(one.question))])
        except Exception as error:  # whatever the tokenizer raises belongs to who asked
            return error

    def enter(self, coded: Sequence[tuple[Waiting, list[Text] | Exception]]) -> list[tuple[Waiting, Exception]]:
        """Let them wait for the first layer; gives back those that cannot."""
        failed = []
        for one, texts in coded:
            if isinstance(texts, Exception):
                self.texts -= len(one.question)
                self._open.discard(one)
                failed.append((one, texts))
            else:
                self._layers.add(texts)
        return failed

    def take(self, now: float) -> list[Text]:
        """The texts to run next; none where nobody waits."""

        def gone(text: Text) -> bool:
            one = text.owner[0].waiting
            if one.expired(now):
                self._open.discard(one)
            if one in self._open:
                return False
            self.texts -= 1
            return True

        return self._layers.take(gone)

    def run(self, texts: Sequence[Text]) -> Pass:
        """Bring them through their layer; a text that breaks the call fails alone."""
        if not texts:
            return Pass()
        try:
            return Pass(*self._exits.run(texts))
        except Exception as error:  # whatever the runtime raises belongs to who asked, not to this thread
            if len(texts) == 1:
                return Pass(failed=[(texts[0], error)])
        found = Pass()
        for alone in [self.run([text]) for text in texts]:
            found.left += alone.left
            found.staying += alone.staying
            found.failed += alone.failed
        return found

    def put(self, found: Pass) -> tuple[list[Asked], list[tuple[Waiting, Exception]]]:
        """Let those that stay wait for the next layer; gives back the questions that are complete, and those that
        failed."""
        self._layers.put(found.staying)
        self.texts -= len(found.left) + len(found.failed)
        complete, failed = [], []
        for text, error in found.failed:
            one = text.owner[0].waiting
            if one in self._open:
                self._open.discard(one)
                failed.append((one, error))
        for text in found.left:
            asked, place = text.owner
            asked.logits[place] = text.logits
            if len(asked.logits) == len(asked.waiting.question) and asked.waiting in self._open:
                self._open.discard(asked.waiting)
                complete.append(asked)
        return complete, failed

    def shaped(self, complete: Sequence[Asked]) -> list[tuple[Waiting, Any]]:
        """Answers to questions that are complete."""
        return [(asked.waiting, self._shaped(asked)) for asked in complete]

    def _shaped(self, asked: Asked) -> Any:
        question = asked.waiting.question
        try:
            return self._student.shaped(question, np.stack([asked.logits[place] for place in range(len(question))]))
        except Exception as error:  # belongs to who asked, not to this thread
            return error

    def refuse(self) -> list[Waiting]:
        """Give everything up; gives back the questions that will not be answered."""
        left = list(self._open)
        self._open.clear()
        return left
