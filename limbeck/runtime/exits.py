"""A student that answers layer by layer: a text leaves behind the first layer whose branch is sure of it.

How sure a branch is of a text is the entropy of its answer as a share of the largest, ln(classes); a text leaves where
that is not above ``speed``. The rest of the layers runs without it; ``limbeck/runtime/layers.py`` says with whom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InvalidInput, InvalidModel, Problem
from limbeck.runtime.encoding import Feeds, Row, pad
from limbeck.runtime.layers import Layers, Text
from limbeck.runtime.session import Session

#: Below ``onnx/`` of a student's folder; one graph for each layer, the embeddings in the first, the head in the last.
FOLDER = "onnx/exits"
#: The states that a graph takes; those that it gives come first, in front of the logits.
STATES = "states"
_MASK = "attention_mask"


def graph_files(folder: Path, layers: int) -> tuple[Path, ...]:
    """Where the graphs of a student with so many layers lie."""
    return tuple(folder / FOLDER / f"layer_{number}.onnx" for number in range(1, layers + 1))


def found_graphs(folder: Path) -> tuple[Path, ...]:
    """The graphs of a student's folder in their order; none where it has none.

    Raises:
        InvalidModel: one in between is missing.
    """
    count = len(list((folder / FOLDER).glob("layer_*.onnx")))
    files = graph_files(folder, count)
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


def uncertainty(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The entropy of each row's softmax as a share of the largest: (rows, classes) -> (rows,) in 0 … 1."""
    low = logits - logits.max(axis=1, keepdims=True)
    raised = np.exp(low)
    sums = raised.sum(axis=1)
    entropies = np.log(sums) - (raised * low).sum(axis=1) / sums
    shares: NDArray[np.float32] = np.clip(entropies / math.log(logits.shape[1]), 0, 1)
    return shares


class ExitSession:
    """The graphs of one student; calling it from several threads at once is safe.

    Args:
        files: one graph for each layer, see :func:`found_graphs`.
        speed: at which texts leave where nobody names another.
        pad_id: the padding token.
        threads, providers: as for :class:`~limbeck.runtime.session.Session`.

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
        self._graphs = [Session(file, threads=threads, providers=providers) for file in files]

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
        while call := layers.take():
            left, staying = self.run(call)
            layers.put(staying)
            yield from left

    def run(self, texts: Sequence[Text]) -> tuple[list[Text], list[Text]]:
        """Bring texts that are in front of the same layer through it. Where it raises they are as they were.

        Returns:
            those that leave, with their logits, and those that stay, with their states.
        """
        number = texts[0].layers
        last = number + 1 == self.layers
        given = _stacked(texts) if number else pad([text.row for text in texts], self._pad_id)
        found = self._graphs[number].run(given)  # states and logits; of the last layer logits alone
        staying = [False] * len(texts) if last else _staying(texts, found[1])
        for place, (text, stays) in enumerate(zip(texts, staying, strict=True)):
            text.layers = number + 1
            # A copy, so that one who stays does not hold the states of all who were with it.
            text.states = found[0][place, : len(text)].copy() if stays else None
            text.logits = None if stays else found[-1][place]
        return [text for text in texts if text.states is None], [text for text in texts if text.states is not None]

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


def _staying(texts: Sequence[Text], logits: NDArray[np.float32]) -> list[bool]:
    # At speed 0 nobody leaves, however sure: an entropy of exactly 0 is not above it.
    if not any(text.speed for text in texts):
        return [True] * len(texts)
    found = zip(texts, uncertainty(logits).tolist(), strict=True)
    return [uncertain > text.speed or text.speed == 0 for text, uncertain in found]


def _stacked(texts: Sequence[Text]) -> Feeds:
    """The states behind a layer as one batch, as long as its longest text."""
    mask = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    each = [text.states for text in texts if text.states is not None]
    states = np.zeros((*mask.shape, each[0].shape[-1]), dtype=np.float32)
    for place, own in enumerate(each):
        states[place, : len(own)] = own
        mask[place, : len(own)] = 1
    return {STATES: states, _MASK: mask}


def _rows(feeds: Feeds) -> list[Row]:
    lengths = feeds[_MASK].sum(axis=1).tolist()
    each = zip(feeds["input_ids"], feeds["token_type_ids"], lengths, strict=True)
    return [Row(ids[:length], types[:length]) for ids, types, length in each]
