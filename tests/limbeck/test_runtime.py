"""A student without torch answers as transformers' own pipeline does."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.errors import InvalidInput, InvalidModel
from limbeck.runtime import Predictor
from limbeck.runtime.encoding import Row, chunks, pad
from tests.exported import LABELS, MAX_LENGTH, texts

Pipeline = Callable[..., Any]


def pipeline_of(folder: Path) -> Pipeline:
    from transformers import pipeline

    made = pipeline("text-classification", model=str(folder))
    return lambda inputs, **options: made(inputs, truncation=True, max_length=MAX_LENGTH, **options)


@pytest.fixture(scope="module")
def pipe(exported_student: Path) -> Pipeline:
    return pipeline_of(exported_student)


@pytest.fixture(scope="module")
def student(exported_student: Path) -> Predictor:
    return Predictor.load(exported_student, threads=1)


@pytest.fixture(scope="module")
def pair_student(exported_pair_student: Path) -> Predictor:
    return Predictor.load(exported_pair_student, threads=1)


def leaves(answer: Any) -> Iterator[Any]:
    """Labels, scores and brackets in order, so that answers of unlike shapes differ."""
    if isinstance(answer, list):
        yield "["
        for one in answer:
            yield from leaves(one)
        yield "]"
    else:
        assert set(answer) == {"label", "score"}
        yield answer["label"]
        yield pytest.approx(answer["score"], abs=1e-4)


ONE, *_ = FEW = texts(9)

INPUTS: dict[str, Any] = {
    "a text": ONE,
    "an empty text": "",
    "an object": {"text": ONE},
    "a list": FEW,
    "a list of one": [ONE],
    "a list of objects": [{"text": text} for text in FEW],
    "a mixed list": [ONE, {"text": FEW[1]}],
    "a text that is cut": " ".join(FEW),
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS.keys())
def test_answers_have_the_shape_and_the_scores_of_the_pipeline(inputs: Any, pipe: Pipeline, student: Predictor) -> None:
    """Guards against a client of transformers that breaks, or reads other scores, when it asks Limbeck instead."""
    assert list(leaves(student.predict(inputs))) == list(leaves(pipe(inputs)))
    assert list(leaves(student.predict(inputs, top_k="all"))) == list(leaves(pipe(inputs, top_k=None)))
    for top_k in (1, 2, len(LABELS) + 5):
        assert list(leaves(student.predict(inputs, top_k=top_k))) == list(leaves(pipe(inputs, top_k=top_k)))


def test_pairs_are_answered_as_by_the_pipeline(exported_pair_student: Path, pair_student: Predictor) -> None:
    """Guards against token types, or a cut that takes from the wrong text, in pairs."""
    pipe = pipeline_of(exported_pair_student)
    long = " ".join(FEW)
    pairs = [{"text": a, "text_pair": b} for a, b in zip(FEW, FEW[::-1], strict=True)]
    pairs += [{"text": long, "text_pair": ONE}, {"text": ONE, "text_pair": long}, {"text": long, "text_pair": long}]
    assert list(leaves(pair_student.predict(pairs))) == list(leaves(pipe(pairs)))
    assert list(leaves(pair_student.predict(pairs[0], top_k=2))) == list(leaves(pipe(pairs[0], top_k=2)))


def test_many_texts_come_back_in_their_order(student: Predictor) -> None:
    """Guards against answers in the order of length in which they were computed, and padding that leaks."""
    many = texts(120)
    together = student.logits(many)
    np.testing.assert_allclose(together, np.concatenate([student.logits([text]) for text in many]), atol=1e-5)
    assert student.logits([]).shape == (0, len(LABELS))


def test_threads_get_their_own_answers(student: Predictor) -> None:
    """Guards against state that two requests share."""
    many = texts(60)
    alone = [student.predict(text, top_k="all") for text in many]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: list(leaves(student.predict(text, top_k="all"))), many)) == [
            list(leaves(answer)) for answer in alone
        ]


def test_eight_bits_answer_too(exported_student: Path, student: Predictor) -> None:
    """Guards against int8 being loaded where it was not asked for, or float32 where it was."""
    small = Predictor.load(exported_student, format="onnx-int8", threads=1)
    assert (student.format, small.format) == ("onnx", "onnx-int8")
    apart = np.abs(student.logits(texts(30)) - small.logits(texts(30))).max()
    assert 0 < apart < 0.5


BAD: dict[str, tuple[Any, str, str]] = {
    "nothing": (None, "/inputs", "found null"),
    "a number": (3, "/inputs", "found a number"),
    "an empty list": ([], "/inputs", "the list is empty"),
    "a number in a list": (["a", 3], "/inputs/1", "found a number"),
    "a list in a list": ([["a", "b"]], "/inputs/0", "found a list"),
    "bytes": (b"a", "/inputs", "found a bytes"),
    "no text": ({}, "/inputs/text", "required"),
    "null as text": ([{"text": None}], "/inputs/0/text", "required"),
    "a number as text": ([{"text": 1.5}], "/inputs/0/text", "found a number"),
    "another field": ({"text": "a", "label": "b"}, "/inputs/label", "no such field"),
    "question and context": ({"question": "a", "context": "b"}, "/inputs/context", "no such field"),
    "half a surrogate pair": (["a", "b\ud800"], "/inputs/1", "surrogate"),
    "tokens for a student of texts": ({"tokens": ["a"]}, "/inputs/tokens", "this student does not tag tokens"),
    "two texts for one": ({"text": "a", "text_pair": "b"}, "/inputs/text_pair", "reads one text"),
}


@pytest.mark.parametrize(("inputs", "pointer", "detail"), BAD.values(), ids=BAD.keys())
def test_bad_inputs_are_named_by_their_place(inputs: Any, pointer: str, detail: str, student: Predictor) -> None:
    """Guards against a stack trace from the tokenizer, or an answer to something else than was asked."""
    with pytest.raises(InvalidInput) as caught:
        student.predict(inputs)
    found = {problem.pointer: problem.detail for problem in caught.value.problems}
    assert detail in found[pointer]
    assert pointer in caught.value.message


def test_a_student_of_pairs_needs_both(pair_student: Predictor) -> None:
    """Guards against confident nonsense about half of a pair."""
    with pytest.raises(InvalidInput) as caught:
        pair_student.predict(["a", {"text": "a", "text_pair": "b"}, {"text": "a"}])
    assert [problem.pointer for problem in caught.value.problems] == ["/inputs/0/text_pair", "/inputs/2/text_pair"]


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, "some"])
def test_a_wrong_top_k_is_refused(top_k: Any, student: Predictor) -> None:
    """Guards against Python's slices: top_k=-1 would answer with all labels but the last."""
    with pytest.raises(InvalidInput, match="/parameters/top_k"):
        student.predict("a", top_k=top_k)


def broken(folder: Path, to: Path, name: str, content: bytes | None) -> Path:
    """A copy in which one file is gone or has other content."""
    shutil.copytree(folder, to)
    (to / name).unlink()
    if content is not None:
        (to / name).write_bytes(content)
    return to


FAULTS: dict[str, tuple[str, bytes | None, str]] = {
    "no student": ("limbeck.json", None, "no student of Limbeck's"),
    "not JSON": ("limbeck.json", b"{", "is not JSON"),
    "a later version": ("limbeck.json", b'{"version": 2, "task": "sequence_classification"}', "version 2"),
    "labels missing": ("limbeck.json", b'{"version": 1, "task": "sequence_classification"}', "not complete: .*labels"),
    "no configuration": ("config.json", None, "config.json cannot be read"),
    "no tokenizer": ("tokenizer.json", None, "tokenizer.json cannot be used"),
    "a broken tokenizer": ("tokenizer.json", b"{}", "tokenizer.json cannot be used"),
    "a broken graph": ("onnx/model.onnx", b"not a graph", "ONNX Runtime cannot load"),
    "a cut graph": ("onnx/model.onnx", b"", "ONNX Runtime cannot load"),
}


@pytest.mark.parametrize(("name", "content", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_folder_that_cannot_be_used_says_why(
    name: str, content: bytes | None, message: str, exported_student: Path, tmp_path: Path
) -> None:
    """Guards against errors of three libraries that a reader has to guess from."""
    with pytest.raises(InvalidModel, match=message):
        Predictor.load(broken(exported_student, tmp_path / "student", name, content))


def test_a_missing_form_is_named(exported_pair_student: Path, tmp_path: Path) -> None:
    """Guards against another form being run than the one that was asked for."""
    with pytest.raises(InvalidModel, match="no exported form onnx-int8; it has: onnx"):
        Predictor.load(exported_pair_student, format="onnx-int8")
    with pytest.raises(InvalidModel, match="has no ONNX file, with which a student answers"):
        Predictor.load(broken(exported_pair_student, tmp_path / "student", "onnx/model.onnx", None))


def test_padding_has_the_students_own_token() -> None:
    """Guards against RoBERTa's positions, which are counted over what is not padding."""
    feeds = pad([Row([7, 8, 9], [0, 1, 1]), Row([5], [0])], pad_id=1)
    assert feeds["input_ids"].tolist() == [[7, 8, 9], [5, 1, 1]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert feeds["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]


def test_chunks_hold_every_row_once_and_rows_of_like_length() -> None:
    """Guards against lost rows, and against one long text that makes all others long."""
    lengths = np.random.default_rng(0).integers(2, 129, 500).tolist()
    found = list(chunks(lengths))
    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    padded = [len(places) * max(lengths[i] for i in places) for places in found]
    assert sum(padded) < 1.15 * sum(lengths)
    assert max(padded) <= 256
    assert [places.tolist() for places in chunks([400, 300])] == [[1], [0]]
    assert list(chunks([])) == []


def test_students_with_one_tokenizer_file_hold_it_once(exported_student: Path, tmp_path: Path) -> None:
    """Guards against a hundred students of one teacher that hold a hundred tables of words, against one that is cut
    at another's length, and against tokenizers that stay when nobody holds them."""
    shorter, changed = (shutil.copytree(exported_student, tmp_path / name) for name in ("shorter", "changed"))
    described = json.loads((shorter / "limbeck.json").read_text())
    (shorter / "limbeck.json").write_text(json.dumps(described | {"max_length": 4}))
    with (changed / "tokenizer.json").open("a") as file:
        file.write("\n")
    students = [Predictor.load(one, threads=1) for one in (exported_student, exported_student, shorter, changed)]
    kept = [student._encoder for student in students]
    assert [kept[0] is one for one in kept] == [True, True, False, False]
    assert [len(one.encode([ONE])[0]) > 4 for one in kept] == [True, True, False, True]
    gone = weakref.ref(kept[2])
    del students, kept
    gc.collect()
    assert gone() is None
