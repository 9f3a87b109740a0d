"""Students of every task share windows among their callers, and everybody gets the answer that is theirs alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from api.inference import Batcher
from api.inference.batcher import WINDOW
from limbeck.config import TASKS
from limbeck.errors import Busy
from limbeck.runtime import Predictor, Question
from tests.exported import texts
from tests.tiny import write_tiny_bert

LABELS = {
    "sequence_classification": ["a", "b", "c"],
    "multi_label": ["a", "b", "c"],
    "regression": [],
    "token_classification": ["O", "B-x", "B-y"],
    "question_answering": [],
    "embeddings": [],
}


class Watched:
    """A student, and how many questions each of its windows had, and rows."""

    exits = None

    def __init__(self, student: Predictor) -> None:
        self.student = student
        self.windows: list[int] = []
        self.rows: list[int] = []

    def answers(self, questions: Sequence[Question]) -> list[Any]:
        self.windows.append(len(questions))
        self.rows.append(sum(one.rows for one in questions))
        return self.student.answers(questions)


def student_of(task_type: str, folder: Path) -> Predictor:
    from transformers import AutoConfig

    from limbeck.graph import write_graph

    task = TASKS[task_type]()
    write_tiny_bert(folder, layers=1)
    config = AutoConfig.from_pretrained(folder)
    task.configure(config, LABELS[task_type])
    (folder / "onnx").mkdir()
    write_graph(task.model_class().from_config(config).train(False), task, folder / "onnx" / "model.onnx")
    described = {"version": 1, "task": task_type, "labels": LABELS[task_type], "max_length": 32, "pair": False}
    (folder / "limbeck.json").write_text(json.dumps(described | task.described(config)))
    return Predictor.load(folder, threads=1)


def numbers(answer: Any) -> list[float]:
    if isinstance(answer, float):
        return [answer]
    found = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else []
    return list(chain.from_iterable(numbers(one) for one in found))


@pytest.mark.parametrize("task", list(LABELS))
def test_callers_share_a_window_and_nothing_else(task: str, tmp_path: Path) -> None:
    """Guards against a task that goes around the windows, and against an answer in the wrong hands."""
    student = student_of(task, tmp_path / "student")
    watched = Watched(student)
    given: list[Any] = list(texts(7))
    if task == "question_answering":
        given = [{"question": "What is returned?", "context": text} for text in given]
    if task == "token_classification":
        given[1:6:2] = [{"tokens": [text, "it's"]} for text in given[1:6:2]]
    given = [*given[:4], given[4:6], given[6]]

    async def script(made: Batcher) -> list[Any]:
        with made._turn:  # so that the one thread takes nothing until all have come
            asked = [asyncio.ensure_future(made.ask(watched, student.question(one))) for one in given]  # type: ignore[arg-type]
            await asyncio.sleep(0)
        return list(await asyncio.gather(*asked))

    made = Batcher(threads=1, limit=100, seconds=30)
    try:
        found = asyncio.run(script(made))
    finally:
        made.close()
    assert watched.windows == [len(given)]
    for one, answer in zip(given, found, strict=True):
        assert numbers(answer) == pytest.approx(numbers(student.predict(one)), abs=1e-4)


@pytest.mark.parametrize("top_k", [None, 3, "all"])
def test_a_long_context_is_answered_in_pieces(top_k: Any, tmp_path: Path) -> None:
    """Guards the threads: a body of 1 MiB has some 900 windows, which were one text of the queue and one call of a
    minute. And the answer, which is that of all windows together."""
    student = student_of("question_answering", tmp_path / "student")
    watched = Watched(student)
    short, long = ({"question": "What is returned?", "context": " ".join(texts(count))} for count in (1, 60))
    given: list[Any] = [[short, long, long, short, short], long, short]

    async def script(made: Batcher) -> list[Any]:
        asked = [student.question(one, top_k=top_k) for one in given]
        assert asked[1].rows > 2 * WINDOW
        return [await made.ask(watched, one) for one in asked]  # type: ignore[arg-type]

    made = Batcher(threads=2, limit=10, seconds=60)
    try:
        found = asyncio.run(script(made))
    finally:
        made.close()
    assert max(watched.rows) == WINDOW
    for one, answer in zip(given, found, strict=True):
        assert numbers(answer) == pytest.approx(numbers(student.predict(one, top_k=top_k)), abs=1e-4)


def test_a_context_counts_as_its_windows(tmp_path: Path) -> None:
    """Guards the bound of what waits."""
    student = student_of("question_answering", tmp_path / "student")
    asked = student.question({"question": "What is returned?", "context": " ".join(texts(4))})
    assert 1 < asked.rows < WINDOW
    made = Batcher(threads=1, limit=asked.rows, seconds=60)

    async def script() -> None:
        with made._turn:  # so that the thread takes nothing
            first = asyncio.ensure_future(made.ask(student, asked))
            await asyncio.sleep(0)
            assert made.waiting == asked.rows
            with pytest.raises(Busy, match=f"{asked.rows} texts wait"):
                await made.ask(student, asked)
        await first

    asyncio.run(script())
    made.close()
