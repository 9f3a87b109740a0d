"""A student that answers: texts in, labels and scores out, in the shapes of transformers' pipelines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InvalidModel
from limbeck.formats import Format
from limbeck.runtime.encoding import Encoder, Row, chunks, pad
from limbeck.runtime.entities import entities
from limbeck.runtime.exits import ExitSession, check_speed, found_graphs
from limbeck.runtime.feeding import feeds_of
from limbeck.runtime.images import Picture, Preparation
from limbeck.runtime.inputs import (
    Question,
    TopK,
    is_comparison,
    read_asked,
    read_compared,
    read_question,
    refuse_top_k,
    require_contexts,
    require_time,
)
from limbeck.runtime.layers import Text
from limbeck.runtime.masks import TOP_K, fillings, require_few, require_masks
from limbeck.runtime.parts import similarities, spans_answer
from limbeck.runtime.picture_inputs import read_pictures
from limbeck.runtime.session import Session
from limbeck.runtime.student import StudentFacts, exported
from limbeck.runtime.windows import Span, Window, best_spans


class Predictor:
    """A loaded student; calls from several threads at once are safe.

    >>> student = Predictor.load(Path("student"))  # doctest: +SKIP
    >>> student.predict("Parse an RFC 822 header.")  # doctest: +SKIP
    [{'label': 'networking', 'score': 0.97}]
    """

    def __init__(
        self, facts: StudentFacts, encoder: Encoder | Preparation, session: Session | ExitSession, format: Format
    ) -> None:
        self._facts = facts
        self._reader = encoder
        self._session = session
        self.format = format

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        format: Format | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> Predictor:
        """Load a student's folder.

        Args:
            folder: with ``limbeck.json``, ``config.json``, ``tokenizer.json`` (of images ``preprocessor_config.json``)
                and ``onnx/``.
            format: default: ``onnx`` where there is one, else the next of :data:`limbeck.formats.FILES`.
            threads: that one call computes with; default: as many as the machine has cores.
            providers: what computes: ``cuda``, ``openvino``, ``cpu``, the preferred one first; default: whatever is
                installed.

        Raises:
            InvalidModel: the folder is no student's, lacks the form, or holds a broken file; or a provider that was
                named does not start.
            InvalidInput: a provider is unknown or not installed.
        """
        facts = StudentFacts.read(folder)
        layers = found_graphs(folder, facts.layers) if facts.speed is not None and format in (None, "onnx") else ()
        if facts.speed is not None and layers:
            session = ExitSession(layers, facts.speed, pad_id=facts.pad_id, threads=threads, providers=providers)
            return cls(facts, Encoder.load(folder, facts), session, "onnx")
        found, path = exported(folder, format)
        if facts.task == "image_classification":
            reader: Encoder | Preparation = Preparation.read(folder)
        else:
            reader = Encoder.load(folder, facts)
        return cls(facts, reader, Session(path, threads=threads, providers=providers), found)

    @property
    def _encoder(self) -> Encoder:
        assert isinstance(self._reader, Encoder)  # only a student of images has another
        return self._reader

    @property
    def task(self) -> str:
        """The ``type`` of the task that it was trained for."""
        return self._facts.task

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the logits; none for questions and vectors, and transformers' ``LABEL_0`` for a number."""
        return ("LABEL_0",) if self._facts.task == "regression" else self._facts.labels

    @property
    def pair(self) -> bool:
        """Whether it reads pairs of texts."""
        return self._facts.pair

    @property
    def mask(self) -> str | None:
        """What stands for a token that is to be found, of a student that finds such tokens."""
        return self._facts.mask

    @property
    def tokenizers(self) -> int:
        """How many it has in memory: to cut contexts takes two more."""
        return 3 if self.task == "question_answering" else 1

    @property
    def _mask_id(self) -> int:
        found = self._encoder.tokenizer.token_to_id(self._facts.mask or "")
        if found is None:
            raise InvalidModel(f"The student's tokenizer has no token {self._facts.mask!r}, its mask.")
        return int(found)

    @property
    def speed(self) -> float | None:
        """At which texts leave early where a call names no other; None where student or form has no exits."""
        return self.exits.speed if self.exits is not None else None

    @property
    def exits(self) -> ExitSession | None:
        """What takes :meth:`coded` texts through its layers one by one; None where student or form has no exits."""
        return self._session if isinstance(self._session, ExitSession) else None

    def predict(self, inputs: Any, *, top_k: TopK = None, speed: float | None = None) -> Any:
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
        What counts as a word of the text: ``limbeck/runtime/words.py``. In the place of a text they take
        ``{"tokens": ["John", "lives", …]}`` as well, read as the rows of a data set are; ``start`` and ``end`` are then
        characters of the tokens with a blank between them.

        Students that answer questions take ``{"question": …, "context": …}``, or a list of them, and answer
        ``{"score", "start", "end", "answer"}`` for each, with ``top_k`` a list of so many, best first.

        Students that give vectors answer with a list of numbers, a vector of length 1, for a text, and with a list of
        these for a list of texts, as the feature-extraction of Hugging Face's Inference API; ``top_k`` is refused.
        ``{"source_sentence": …, "sentences": […]}`` gets the cosine with each of the sentences, as sentence-similarity
        there.

        Students that find masked tokens answer ``[{"score", "token", "token_str", "sequence"}, …]`` for a text with one
        mask, a list of these for each mask where there are more, and a list of either for a list of texts, as
        ``FillMaskPipeline``; ``top_k`` is 5 where it is not given, and at most 100, or 1,000
        tokens in a text. :attr:`mask` is what stands for a token.

        Students of images take base64 of an encoded image, its ``bytes``, a ``Path``, or a list of these, and answer as
        ``ImageClassificationPipeline``: the best labels first, five where ``top_k`` is not given; of a list a list of
        these.

        ``speed`` is for students with early exits: from 0, where every text goes through all layers, to 1, where every
        text leaves behind the first; default: the student's own (:attr:`speed`), which its job calibrated.

        Raises:
            InvalidInput: with a pointer for each input that is wrong.
        """
        return self.answers([self.question(inputs, top_k=top_k, speed=speed)])[0]

    def question(
        self, inputs: Any, *, top_k: TopK = None, speed: float | None = None, until: float = math.inf
    ) -> Question:
        """What :meth:`predict` is asked, checked, for :meth:`answers`.

        Args:
            until: on the monotonic clock: then it is given up, between two images.

        Raises:
            InvalidInput: with a pointer for each input that is wrong.
            TooSlow: ``until`` is past.
        """
        require_time(until)
        check_speed(speed, self.speed)
        if isinstance(self._reader, Preparation):
            return read_pictures(inputs, self._reader, top_k=top_k, until=until)
        if self.task == "question_answering":
            asked = read_asked(inputs, top_k=top_k)
            windows = self._encoder.windows.encode(asked.texts, asked.pairs or [])
            require_contexts(asked, [not all(one.empty for one in each) for each in windows])
            return replace(asked, windows=windows)
        if self.task == "embeddings":
            if top_k not in (None, "all"):
                refuse_top_k("a student that gives vectors has nothing to rank; leave it out")
            if is_comparison(inputs):
                return read_compared(inputs)
        if self.task == "token_classification" and top_k is not None:
            refuse_top_k("a student that tags tokens answers with every entity; leave it out")
        if self.task == "masked_lm":
            require_few(top_k)
        tags = self.task == "token_classification"
        question = read_question(inputs, pair=self.pair and not tags, tags=tags, top_k=top_k, speed=speed)
        if self._facts.mask is not None:
            require_masks(self._encoder.encode(question.texts), question, self._facts.mask, self._mask_id)
        return question

    def answers(self, questions: Sequence[Question]) -> list[Any]:
        """Answer several questions in one go; each gets what it would get alone."""
        texts = [text for question in questions for text in question.texts]
        found: Any
        if self.task == "token_classification":
            found = self._entities(questions)
        elif self.task == "question_answering":
            found = self._spans([windows for question in questions for windows in question.windows or ()])
        elif self.task == "image_classification":
            found = softmax(self._picture_logits([one for question in questions for one in question.pictures or ()]))
        elif self.task == "embeddings":
            found = self._logits(texts, None, [None] * len(texts)).tolist()
        elif self.task == "masked_lm":
            kept = [question.top_k for question in questions for _ in question.texts]
            found = self._fillings(texts, [one if isinstance(one, int) else TOP_K for one in kept])
        else:
            pairs = [second for question in questions for second in question.pairs or ()]
            speeds = [question.speed for question in questions for _ in question.texts]
            found = self._scores(self._logits(texts, pairs if self.pair else None, speeds))
        ends = np.cumsum([len(question) for question in questions]).tolist()
        own = [found[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        shaped = {
            "token_classification": _each_of,
            "question_answering": _spans_of,
            "embeddings": _vectors_of,
            "masked_lm": _each_of,
        }.get(self.task, self._labels_of)
        return [shaped(question, part) for question, part in zip(questions, own, strict=True)]

    def coded(self, question: Question, owners: Sequence[Any]) -> list[Text]:
        """The texts of a question as what :attr:`exits` takes; each carries its owner."""
        assert self.exits is not None  # the caller has looked
        rows = self._encoder.encode(question.texts, question.pairs)
        return self.exits.texts(rows, [question.speed] * len(rows), owners)

    def shaped(self, question: Question, logits: NDArray[np.float32]) -> Any:
        """The answer to a question whose texts have left with these logits, (texts, classes); see :meth:`coded`."""
        return self._labels_of(question, self._scores(logits))

    def _labels_of(self, question: Question, scores: NDArray[np.float64]) -> Any:
        top_k = question.top_k
        if top_k is None:
            best = scores.argmax(axis=1)
            answers = [self._answer(row, place) for row, place in zip(scores, best.tolist(), strict=True)]
            return answers[0] if question.form == "object" else answers
        kept = len(self.labels) if top_k == "all" else top_k
        # Stable, so that equal scores stand in the order of the labels, as in the pipeline.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
        ranked = [[self._answer(row, i) for i in places] for row, places in zip(scores, order.tolist(), strict=True)]
        return ranked if question.form == "list" else ranked[0]

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, speed: float | None = None
    ) -> NDArray[np.float32]:
        """Logits of each text, or pair of texts: (examples, classes), in the order given; no examples, no rows.
        Of a student that gives vectors these.

        Raises:
            InvalidInput: a ``speed`` that is none, or for a student without exits.
        """
        check_speed(speed, self.speed)
        return self._logits(texts, pairs, [speed] * len(texts))

    def _logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None, speeds: Sequence[float | None]
    ) -> NDArray[np.float32]:
        rows = self._encoder.encode(texts, pairs)
        logits = np.empty((len(rows), self._facts.width or len(self.labels)), dtype=np.float32)
        if isinstance(self._session, ExitSession):
            for text in self._session.through(self._session.texts(rows, speeds, range(len(rows)))):
                logits[text.owner] = text.logits
            return logits
        for places in chunks([len(row) for row in rows]):
            logits[places] = self._session(pad([rows[i] for i in places], self._facts.pad_id))
        return logits

    def _picture_logits(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        assert isinstance(self._session, Session)  # only students that class texts have exits
        logits = np.empty((len(pictures), len(self.labels)), dtype=np.float32)
        for places in chunks([len(one) for one in pictures]):
            logits[places] = self._session(feeds_of([pictures[i] for i in places], 0))
        return logits

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.task == "multi_label":
            return sigmoid(logits)
        return logits.astype(np.float64) if self.task == "regression" else softmax(logits)

    def _entities(self, questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
        """The entities of each text."""
        texts = [text for question in questions for text in question.texts]
        coded = self._encoder.trace(texts, [one for question in questions for one in question.tokens or ()])
        return [
            entities(text, one, softmax(logits), self.labels, self._encoder.tokenizer)
            for text, one, logits in zip(texts, coded, self._token_logits(coded), strict=True)
        ]

    def _spans(self, each: Sequence[Sequence[Window]]) -> list[list[Span]]:
        """The candidates for each question's answer, best first, of its windows."""
        logits = iter(self._token_logits([Row(one.ids, one.types) for windows in each for one in windows]))
        return [best_spans([(next(logits), one.places) for one in windows]) for windows in each]

    def _fillings(self, texts: Sequence[str], top_k: Sequence[int]) -> list[Any]:
        """What stands at the masks of each text; only the best of it is kept, as logits are as wide as a vocabulary."""
        rows, mask_id = self._encoder.encode(texts), self._mask_id
        found: list[Any] = [None] * len(rows)
        for places in chunks([len(row) for row in rows]):
            for place, logits in zip(places, self._token_logits([rows[i] for i in places]), strict=True):
                found[place] = fillings(rows[place], logits, mask_id, top_k[place], self._encoder.tokenizer)
        return found

    def _token_logits(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Logits of each row's tokens, (tokens, classes), in the order given."""
        found: list[NDArray[np.float32]] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
        for places in chunks([len(row) for row in rows]):
            assert isinstance(self._session, Session)  # only students that class texts have exits
            logits = self._session(pad([rows[i] for i in places], self._facts.pad_id))
            for place, one in zip(places, logits, strict=True):
                found[place] = one[: len(rows[place])]
        return found

    def _answer(self, scores: NDArray[np.float64], place: int) -> dict[str, Any]:
        return {"label": self.labels[place], "score": float(scores[place])}


def _each_of(question: Question, found: Sequence[Any]) -> Any:
    return list(found) if question.form == "list" else found[0]


def _vectors_of(question: Question, found: Sequence[Sequence[float]]) -> Any:
    if question.form != "compared":
        return _each_of(question, found)
    return list(found) if question.piece is not None else similarities(found)


def _spans_of(question: Question, found: Sequence[list[Span]]) -> Any:
    if question.piece is not None:
        return found[0]
    answers = [spans_answer(question, place, spans) for place, spans in enumerate(found)]
    return answers if question.form == "list" else answers[0]


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each, in float64."""
    chances: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return chances


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = raised / raised.sum(axis=-1, keepdims=True)
    return shares
