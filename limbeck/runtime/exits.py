"""A student that answers layer by layer: a text leaves behind the first layer whose branch is sure of it.

How sure a branch is of a text is the entropy of its answer as a share of the largest, ln(classes); a text leaves where
that is not above ``speed``. The rest of the layers runs without it: states and mask shrink in rows and, when the
longest texts have left, in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InvalidInput, InvalidModel, Problem
from limbeck.runtime.encoding import Feeds
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
        speed: what :meth:`__call__` answers with.
        threads, providers: as for :class:`~limbeck.runtime.session.Session`.

    Raises:
        InvalidModel: ONNX Runtime cannot load a file, or cannot start a provider that was named.
        InvalidInput: a provider is unknown or not installed.
    """

    def __init__(
        self, files: Sequence[Path], speed: float, *, threads: int | None = None, providers: Sequence[str] | None = None
    ) -> None:
        self.speed = speed
        self._layers = [Session(file, threads=threads, providers=providers) for file in files]

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:  # (examples, classes)
        """Logits, at the student's own speed."""
        return self.answer(feeds)[0]

    def answer(
        self, feeds: Feeds, speed: float | Sequence[float | None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits, (examples, classes), and how many layers each example went through, (examples,).

        Args:
            feeds: padded on the right.
            speed: from 0, where nobody leaves, to 1; of all, or of each example. None is the session's own.
        """
        here = np.arange(len(feeds[_MASK]))  # the places in the batch of those who are still in
        layers = np.full(len(here), len(self._layers), dtype=np.int64)
        answers: NDArray[np.float32] | None = None
        speeds = self._speeds(speed, len(here))
        mask, given = feeds[_MASK], feeds
        for number, layer in enumerate(self._layers[:-1], start=1):
            states, logits = layer.run(given)
            # At speed 0 nobody leaves, however sure: an entropy of exactly 0 is not above it.
            own = speeds[here]
            staying = (uncertainty(logits) > own) | (own == 0) if own.any() else None
            if staying is not None and not staying.all():
                answers = np.empty((len(layers), logits.shape[1]), dtype=np.float32) if answers is None else answers
                answers[here[~staying]] = logits[~staying]
                layers[here[~staying]] = number
                here, mask = here[staying], mask[staying]
                if not len(here):
                    return answers, layers
                longest = int(mask.sum(axis=1).max())
                states, mask = states[staying, :longest], mask[:, :longest]
            given = {STATES: states, _MASK: mask}
        (last,) = self._layers[-1].run(given)
        if answers is None:
            return last, layers
        answers[here] = last
        return answers, layers

    def _speeds(self, speed: float | Sequence[float | None] | None, count: int) -> NDArray[np.float32]:
        each = speed if isinstance(speed, Sequence) else [speed] * count
        return np.array([self.speed if one is None else one for one in each], dtype=np.float32)
