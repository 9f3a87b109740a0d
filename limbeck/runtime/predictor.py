"""A student that answers: texts in, labels and scores out, in the shapes of transformers' pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.runtime.encoding import Encoder, Row, chunks, pad
from limbeck.runtime.entities import entities
from limbeck.runtime.inputs import TopK, check_top_k, read_asked, read_question, refuse_top_k
from limbeck.runtime.session import Session
from limbeck.runtime.student import Format, StudentFacts, exported
from limbeck.runtime.windows import Windows, best_spans, probabilities


class Predictor:
    """A loaded student; calls from several threads at once are safe.

    >>> student = Predictor.load(Path("student"))  # doctest: +SKIP
    >>> student.predict("Parse an RFC 822 header.")  # doctest: +SKIP
    [{'label': 'networking', 'score': 0.97}]
    """

    def __init__(self, facts: StudentFacts, encoder: Encoder, session: Session, format: Format) -> None:
        self._facts = facts
        self._encoder = encoder
        self._session = session
        self.format = format

    @classmethod
    def load(cls, folder: Path, *, format: Format | None = None, threads: int | None = None) -> Predictor:
        """Load a student's folder.

        Args:
            folder: with ``limbeck.json``, ``config.json``, ``tokenizer.json`` and ``onnx/``.
            format: default: ``onnx`` where there is one, else ``onnx-int8``.
            threads: that one call computes with; default: as many as the machine has cores.

        Raises:
            InvalidModel: the folder is no student's, lacks the form, or holds a broken file.
        """
        facts = StudentFacts.read(folder)
        found, path = exported(folder, format)
        return cls(facts, Encoder.load(folder, facts), Session(path, threads=threads), found)

    @property
    def task(self) -> str:
        """The ``type`` of the task that it was trained for."""
        return self._facts.task

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits; none for questions, and transformers' ``LABEL_0`` for a number."""
        return ("LABEL_0",) if self._facts.task == "regression" else self._facts.labels

    @property
    def pair(self) -> bool:
        """Whether it reads pairs of texts."""
        return self._facts.pair

    def predict(self, inputs: Any, *, top_k: TopK = None) -> Any:
        """Answers in the shapes of transformers' pipelines.

        Students that class texts or give them a number answer as ``TextClassificationPipeline``:

        ==================  ==================  ==========================================
        inputs              ``top_k=None``      ``top_k=n``, or ``"all"``: best first
        ==================  ==================  ==========================================
        a text              ``[{label}]``       ``[{label}, …]``
        an object           ``{label}``         ``[{label}, …]``
        a list of either    ``[{label}, …]``    ``[[{label}, …], …]``
        ==================  ==================  ==========================================

        ``{label}`` stands for ``{"label": str, "score": float}``, an object is ``{"text": …, "text_pair": …}``.
        ``None`` is the pipeline called without ``top_k``, ``"all"`` is its ``top_k=None``. A score is a probability:
        where one label is chosen they sum to 1, where several may apply each has its own (it applies from 0.5 on); of
        regression it is the number itself.

        Students that tag tokens answer ``[{"entity_group", "score", "word", "start", "end"}, …]`` for a text, and a
        list of these for a list of texts, as ``TokenClassificationPipeline`` with an aggregation; ``top_k`` is refused.
        Students that answer questions take ``{"question": …, "context": …}``, or a list of them, and answer
        ``{"score", "start", "end", "answer"}`` for each, with ``top_k`` a list of so many, best first.

        Raises:
            InvalidInput: with a pointer for each input that is wrong.
        """
        check_top_k(top_k)
        if self.task == "token_classification":
            return self._entities(inputs, top_k)
        if self.task == "question_answering":
            return self._found(inputs, top_k)
        question = read_question(inputs, pair=self.pair)
        scores = self._scores(self.logits(question.texts, question.pairs))
        if top_k is None:
            best = scores.argmax(axis=1)
            answers = [self._answer(row, place) for row, place in zip(scores, best.tolist(), strict=True)]
            return answers[0] if question.form == "object" else answers
        kept = len(self.labels) if top_k == "all" else top_k
        # Stable, so that equal scores stand in the order of the labels, as in the pipeline.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
        ranked = [[self._answer(row, i) for i in places] for row, places in zip(scores, order.tolist(), strict=True)]
        return ranked if question.form == "list" else ranked[0]

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Logits of each text, or pair of texts: (examples, classes), in the order given; no examples, no rows."""
        rows = self._encoder.encode(texts, pairs)
        logits = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for places in chunks([len(row) for row in rows]):
            logits[places] = self._session(pad([rows[i] for i in places], self._facts.pad_id))
        return logits

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.task == "multi_label":
            return sigmoid(logits)
        return logits.astype(np.float64) if self.task == "regression" else softmax(logits)

    def _entities(self, inputs: Any, top_k: TopK) -> Any:
        if top_k is not None:
            refuse_top_k("a student that tags tokens answers with every entity; leave it out")
        question = read_question(inputs, pair=False)
        coded = self._encoder.trace(question.texts)
        answers = [
            entities(text, one, softmax(logits), self.labels, self._encoder.tokenizer)
            for text, one, logits in zip(question.texts, coded, self._token_logits(coded), strict=True)
        ]
        return answers if question.form == "list" else answers[0]

    def _found(self, inputs: Any, top_k: TopK) -> Any:
        asked = read_asked(inputs)
        each = Windows(self._encoder.tokenizer, self._facts.max_length).encode(asked.questions, asked.contexts)
        logits = iter(self._token_logits([Row(one.ids, one.types) for windows in each for one in windows]))
        answers = []
        for context, windows in zip(asked.contexts, each, strict=True):
            spans = best_spans([(next(logits), one.places) for one in windows])
            ranked = [
                {"score": float(score), "start": one.start, "end": one.end, "answer": context[one.start : one.end]}
                for one, score in zip(spans, probabilities(spans), strict=True)
            ]
            kept = ranked if top_k == "all" else ranked[: top_k or 1]
            answers.append(kept if top_k is not None else kept[0])
        return answers[0] if asked.alone else answers

    def _token_logits(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Logits of each row's tokens, (tokens, classes), in the order given."""
        found: list[NDArray[np.float32]] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
        for places in chunks([len(row) for row in rows]):
            logits = self._session(pad([rows[i] for i in places], self._facts.pad_id))
            for place, one in zip(places, logits, strict=True):
                found[place] = one[: len(rows[place])]
        return found

    def _answer(self, scores: NDArray[np.float64], place: int) -> dict[str, Any]:
        return {"label": self.labels[place], "score": float(scores[place])}


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each, in float64."""
    chances: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return chances


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = raised / raised.sum(axis=-1, keepdims=True)
    return shares
