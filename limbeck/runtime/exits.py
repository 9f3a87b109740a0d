"""A student that answers layer by layer: a text leaves behind the first layer whose branch is sure of it.

How sure a branch is of a text is the entropy of its answer as a share of the largest, ln(classes); a text leaves where
that is not above ``speed``. The rest of the layers runs without it; ``limbeck/runtime/layers.py`` says with whom.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InvalidInput, InvalidModel, Problem
from limbeck.runtime.encoding import Feeds, Row, pad
from limbeck.runtime.layers import Layers, Text
from limbeck.runtime.providers import that_branch
from limbeck.runtime.session import Session

#: Below ``onnx/`` of a student's folder; one graph for each layer, the embeddings in the first, the head in the last.
FOLDER = "onnx/exits"
#: The states that a graph takes; those that it gives come first, in front of the logits.
STATES = "states"
#: Whether anybody could leave, a scalar; else the branch is not computed, and its logits mean nothing. Graphs of before
#: compute it in any case.
ASKED = "asked"
_MASK = "attention_mask"
_YES, _NO = np.array(True), np.array(False)
#: Logits of a call, up to which :func:`uncertainty` is quicker without numpy.
_FEW = 64


def graph_files(folder: Path, layers: int) -> tuple[Path, ...]:
    """Where the graphs of a student with so many layers lie."""
    return tuple(folder / FOLDER / f"layer_{number}.onnx" for number in range(1, layers + 1))


def found_graphs(folder: Path, layers: int | None = None) -> tuple[Path, ...]:
    """The graphs of a student's folder in their order; none where it has none.

    Args:
        layers: how many the student has; default: as many as there are graphs.

    Raises:
        InvalidModel: one is missing; without the last one a branch would be taken for the head.
    """
    count = len(list((folder / FOLDER).glob("layer_*.onnx")))
    files = graph_files(folder, (layers or count) if count else 0)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise InvalidModel(f"The student's layers are not complete: {', '.join(missing)} is missing.")
    return files


def check_speed(speed: Any, default: float | None) -> None:
    """
    Args:
        default: the student's own; None where it has no exits.

    Raises:
        InvalidInput: at ``/parameters/speed``.
    """
    if speed is None:
        return
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 <= speed <= 1:
        detail = f"found {speed!r}; allowed: a number from 0 (all layers for every text) to 1"
    elif default is None:
        detail = (
            "this student, or this form of it, has no early exits; leave speed out (the method fastbert makes them)"
        )
    else:
        return
    raise InvalidInput(f"/parameters/speed: {detail}", [Problem("/parameters/speed", detail)])


def uncertainty(logits: NDArray[np.float32]) -> list[float]:
    """The entropy of each row's softmax as a share of the largest: (rows, classes) -> (rows,) in 0 … 1."""
    # A dozen calls of numpy take as long as a tenth of a short text's layer does; few numbers are quicker one by one.
    if logits.size <= _FEW:
        return [_uncertainty(row) for row in logits.tolist()]
    low = logits - logits.max(axis=1, keepdims=True)
    raised = np.exp(low)
    sums = raised.sum(axis=1)
    entropies = np.log(sums) - (raised * low).sum(axis=1) / sums
    shares: list[float] = np.clip(entropies / math.log(logits.shape[1]), 0, 1).tolist()
    return shares


def _uncertainty(row: list[float]) -> float:
    highest = max(row)
    low = [one - highest for one in row]
    raised = [math.exp(one) for one in low]
    total = sum(raised)
    entropy: float = math.log(total) - sum(map(operator.mul, raised, low)) / total
    return min(1.0, max(0.0, entropy / math.log(len(row))))


class ExitSession:
    """The graphs of one student; calling it from several threads at once is safe.

    Args:
        files: one graph for each layer, see :func:`found_graphs`.
        speed: at which texts leave where nobody names another.
        pad_id: the padding token.
        threads, providers: as for :class:`~limbeck.runtime.session.Session`; OpenVINO leaves these graphs, which have
            branches, to the next one.

    Raises:
        InvalidModel: ONNX Runtime cannot load a file, or cannot start a provider that was named.
        InvalidInput: a provider is unknown or not installed.
    """

    def __init__(
        self,
        files: Sequence[Path],
        speed: float,
        *,
        pad_id: int,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.speed = speed
        self._pad_id = pad_id
        able = that_branch(providers)
        self._graphs = [Session(file, threads=threads, providers=able) for file in files]

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self._graphs)

    def texts(self, rows: Sequence[Row], speeds: Sequence[float | None], owners: Sequence[Any]) -> list[Text]:
        """Rows as what goes through the layers; a speed of None is the session's own."""
        each = [self.speed if speed is None else speed for speed in speeds]
        return [Text(*one) for one in zip(rows, each, owners, strict=True)]

    def through(self, texts: Sequence[Text], layers: Layers | None = None) -> Iterator[Text]:
        """Bring texts through the layers; each is given back as soon as it has left."""
        layers = Layers() if layers is None else layers
        layers.add(texts)
        call = layers.take()
        while call:
            left, staying = self.run(call)
            yield from left
            if not layers:  # nobody to meet
                call = staying
                continue
            layers.put(staying)
            call = layers.take()

    def run(self, texts: Sequence[Text]) -> tuple[list[Text], list[Text]]:
        """Bring texts that are in front of the same layer through it. Where it raises they are as they were.

        Returns:
            those that leave, with their logits, and those that stay, with their states.
        """
        number = texts[0].layers
        given = _stacked(texts) if number else pad([text.row for text in texts], self._pad_id)
        asked = any(text.speed for text in texts)
        found = self._graphs[number].run({**given, ASKED: _YES if asked else _NO})  # (states,) logits
        stays = self._stay(texts, found[-1]) if asked else [number + 1 < self.layers] * len(texts)
        left: list[Text] = []
        staying: list[Text] = []
        for place, text in enumerate(texts):
            text.layers = number + 1
            if stays[place]:
                own = found[0][place, : len(text)]
                # A copy, so that one who stays does not hold the states of all who were with it.
                text.states = own.copy() if len(texts) > 1 else own
                staying.append(text)
            else:
                text.states, text.logits = None, found[-1][place]
                left.append(text)
        return left, staying

    def _stay(self, texts: Sequence[Text], logits: NDArray[np.float32]) -> list[bool]:
        if texts[0].layers + 1 == self.layers:
            return [False] * len(texts)
        # At speed 0 nobody leaves, however sure: an entropy of exactly 0 is not above it.
        each = zip(texts, uncertainty(logits), strict=True)
        return [uncertain > text.speed or text.speed == 0 for text, uncertain in each]

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:  # (examples, classes)
        """Logits, at the session's own speed."""
        return self.answer(feeds)[0]

    def answer(self, feeds: Feeds, speed: float | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """A padded batch that stays together as far as its texts stay, as the plain graph would get it.

        Args:
            feeds: padded on the right.
            speed: from 0, where nobody leaves, to 1; None is the session's own.

        Returns:
            logits, (examples, classes), and how many layers each example went through, (examples,).
        """
        rows = _rows(feeds)
        texts = self.texts(rows, [speed] * len(rows), [None] * len(rows))
        for _ in self.through(texts, Layers(full=math.inf, stretch=math.inf)):
            pass
        return np.stack([text.logits for text in texts if text.logits is not None]), np.array(
            [text.layers for text in texts], dtype=np.int64
        )


def _stacked(texts: Sequence[Text]) -> Feeds:
    """The states behind a layer as one batch, as long as its longest text."""
    each = [text.states for text in texts if text.states is not None]
    if len(each) == 1:
        return {STATES: each[0][None], _MASK: _ones(len(each[0]))}
    mask = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    states = np.zeros((*mask.shape, each[0].shape[-1]), dtype=np.float32)
    for place, own in enumerate(each):
        states[place, : len(own)] = own
        mask[place, : len(own)] = 1
    return {STATES: states, _MASK: mask}


@lru_cache(512)
def _ones(tokens: int) -> NDArray[np.int64]:
    """The mask of a text that is alone."""
    return np.ones((1, tokens), dtype=np.int64)


def _rows(feeds: Feeds) -> list[Row]:
    lengths = feeds[_MASK].sum(axis=1).tolist()
    each = zip(feeds["input_ids"], feeds["token_type_ids"], lengths, strict=True)
    return [Row(ids[:length], types[:length]) for ids, types, length in each]
