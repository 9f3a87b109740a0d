"""A whole job of every task with a tiny teacher: from a file of examples to answers without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from limbeck import evaluate
from limbeck.config import TASKS, DistillConfig
from limbeck.data import Split
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidInput
from limbeck.metrics import METRICS, spans
from limbeck.runtime import Predictor
from tests.limbeck.bench import Recorder
from tests.limbeck.task_data import EXAMPLES, write
from tests.tiny import write_tiny_bert

LENGTH = 32


@dataclass(frozen=True)
class Done:
    task: str
    result: DistillResult
    test: list[dict[str, Any]]

    @property
    def student(self) -> Predictor:
        return Predictor.load(self.result.student, threads=1)


@pytest.fixture(scope="module", params=list(EXAMPLES))
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp(request.param)
    teacher = write_tiny_bert(folder / "teacher")
    data = write(request.param, folder / "data")
    document = {
        "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 12, "learning_rate": 5e-3}},
        "dataset": f"path:{data}",
        "student": [1, 3],
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 5e-3, "max_length": LENGTH},
    }
    result = distill(DistillConfig.parse(document), folder / "work")
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    return Done(request.param, result, rows)


def test_a_temperature_that_nothing_reads_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    """Guards an option that is accepted and changes nothing."""
    document = {
        "teacher": {"source": f"path:{write_tiny_bert(tmp_path / 'teacher')}", "finetune": {"epochs": 1}},
        "dataset": f"path:{write('regression', tmp_path / 'data')}",
        "method": {"type": "kd", "temperature": 8},
        "training": {"max_length": LENGTH},
    }
    said = Recorder(stop_after=12)
    with pytest.raises(Interrupted):
        distill(DistillConfig.parse(document), tmp_path / "work", callbacks=said)
    assert [message for kind, message, _ in said.events if kind == "option.unread"] == [
        "method.temperature (8) is not used: it softens probabilities, and the answers of 'regression' are numbers."
    ]


def test_the_task_is_told_by_the_data_and_its_metrics_are_measured(done: Done) -> None:
    """Guards against lists, fractions, tags or answers that are learned as the names of classes."""
    card, task = done.result.scorecard, TASKS[done.task]
    assert card.task == done.task
    assert card.main_metric == task.main_metric
    assert card.baseline is not None
    for model in (card.teacher, card.student, card.baseline):
        assert tuple(model.metrics) == task.metrics
        assert all(found.low <= found.value <= found.high for found in model.metrics.values())
    assert card.teacher.metrics[task.main_metric].value > card.dataset.majority
    assert card.dataset.test == len(done.test)
    (export,) = card.exports
    assert export.label_agreement == 1
    claimed = {name: found.value for name, found in card.student.metrics.items()}
    assert {name: found.value for name, found in export.metrics.items()} == pytest.approx(claimed, abs=1e-5)


def test_what_the_exported_student_answers_is_what_was_measured(done: Done) -> None:
    """Guards the whole chain to the runtime: its answers alone, held against the file, give the scorecard's figure."""
    student, rows = done.student, done.test
    assert student.task == done.task
    claimed = done.result.scorecard.student.metrics[TASKS[done.task].main_metric].value
    found: float
    match done.task:
        case "multi_label":
            answers = student.predict([row["text"] for row in rows], top_k="all")
            chosen = [[one["label"] for one in each if one["score"] >= 0.5] for each in answers]
            order = student.labels
            sets = [
                [[label in each for label in order] for each in one] for one in (chosen, [r["labels"] for r in rows])
            ]
            found = evaluate.score("micro_f1", np.array(sets[0]), np.array(sets[1]))
        case "regression":
            answers = student.predict([{"text": r["sentence1"], "text_pair": r["sentence2"]} for r in rows])
            assert {one["label"] for one in answers} == {"LABEL_0"}
            found = evaluate.score("spearman", [one["score"] for one in answers], [r["label"] for r in rows])
        case "token_classification":
            entities = student.predict([" ".join(row["tokens"]) for row in rows])
            assert any("." in token.strip(".") for row in rows for token in row["tokens"])
            assert entities == student.predict([{"tokens": row["tokens"]} for row in rows])
            tagged = [served_tags(row["tokens"], each) for row, each in zip(rows, entities, strict=True)]
            found = evaluate.score("entity_f1", tagged, [row["tags"] for row in rows])
        case _:
            answers = student.predict([{"question": r["question"], "context": r["context"]} for r in rows])
            assert all(a["answer"] == r["context"][a["start"] : a["end"]] for a, r in zip(answers, rows, strict=True))
            found = evaluate.score("answer_f1", [a["answer"] for a in answers], [r["answers"]["text"] for r in rows])
    assert found == pytest.approx(claimed, abs=1e-6)


def test_lists_of_tokens_are_answered_as_they_are_evaluated(done: Done) -> None:
    """Guards tokens that no cutting of a text would give: with a blank or marks within, of marks alone, Chinese words
    and characters, without a piece, and more of them than fit."""
    if done.task != "token_classification":
        return
    rows = [
        ("New York", "isn't", "(Parse", "a)", "file."),
        ("Parse", "\u200b", "the", "\u0301", "window"),
        (*"在北京解析", "北京", "returns"),
        tuple(f"{token}s" for row in done.test for token in row["tokens"])[: 2 * LENGTH],
        ("\u200b",),
    ]
    task, student = TASKS[done.task](), done.student
    split = Split([" ".join(row) for row in rows], None, [(0,) * len(row) for row in rows], list(rows))
    data = task.encode(AutoTokenizer.from_pretrained(done.result.student), split, student.labels, LENGTH, lambda: None)
    model = AutoModelForTokenClassification.from_pretrained(done.result.student).eval()
    with torch.inference_mode():
        each = [
            model(torch.tensor(data.ids[start:end])[None].long()).logits[0].numpy()
            for start, end in pairwise(data.starts)
        ]
    evaluated = task.predictions(np.concatenate(each), data)
    entities = student.predict([{"tokens": list(row)} for row in rows])
    served = [served_tags(list(row), found) for row, found in zip(rows, entities, strict=True)]
    # Entities do not tell an I- that begins one from a B-.
    assert [list(spans(tags)) for tags in served] == [list(spans(tags)) for tags in evaluated]
    assert all(entities[:4])
    assert entities[4] == []
    assert student.predict({"tokens": list(rows[0])}) == _plain(entities[0])


def served_tags(tokens: list[str], entities: list[dict[str, Any]]) -> list[str]:
    """The tags that entities in the tokens joined by blanks stand for; each has to end where tokens do."""
    ends = np.cumsum([len(token) + 1 for token in tokens]) - 1
    starts = ends - [len(token) for token in tokens]
    tags = ["O"] * len(tokens)
    for one in entities:
        (first,), (last,) = np.flatnonzero(starts == one["start"]), np.flatnonzero(ends == one["end"])
        tags[first : last + 1] = [f"B-{one['entity_group']}", *[f"I-{one['entity_group']}"] * int(last - first)]
    return tags


def test_hard_samples_are_measured_for_every_task(done: Done) -> None:
    """Guards tasks whose examples have no single label: each example stands in the table once, also one of several
    windows, and where plain transformers can tell a text's loss, it is that."""
    card, rows = done.result.scorecard.dataset, pyarrow.parquet.read_table(done.result.hard_samples[0]).to_pylist()
    for split, count in (("train", card.train), ("validation", card.validation)):
        assert sorted(row["row"] for row in rows if row["split"] == split) == list(range(1, count + 1))
    assert all(np.isfinite(row["loss"]) and row["loss"] >= 0 and row["text"] for row in rows)
    assert ("student_right" in rows[0]) == (done.task != "regression")
    assert done.result.scorecard.difficulty is not None
    if done.task not in ("multi_label", "regression"):
        return
    tokenizer = AutoTokenizer.from_pretrained(done.result.student)
    model = AutoModelForSequenceClassification.from_pretrained(done.result.student).eval()
    for row in rows[:10]:
        texts = (row["text"], row["text_pair"]) if "text_pair" in row else (row["text"],)
        with torch.inference_mode():
            logits = model(**tokenizer(*texts, truncation=True, max_length=LENGTH, return_tensors="pt")).logits[0]
        if done.task == "regression":
            expected = (logits[0] - float(row["label"])) ** 2
        else:
            wanted = [float(name in row["label"].split(", ")) for name in done.student.labels]
            expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(wanted))
        assert row["loss"] == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


def test_answers_are_those_of_transformers(done: Done) -> None:
    """Guards the shapes and the scores: a client of transformers' pipelines may ask Limbeck instead."""
    student, folder, row = done.student, done.result.student, done.test[0]
    if done.task in ("multi_label", "regression"):
        pipe = pipeline("text-classification", model=str(folder))
        asked: Any = row["text"] if done.task == "multi_label" else {"text": row["sentence1"], "text_pair": "numbers"}
        for ours, theirs in ((None, {}), ("all", {"top_k": None}), (2, {"top_k": 2})):
            expected = pipe(asked, truncation=True, max_length=LENGTH, **theirs)
            assert _plain(student.predict(asked, top_k=ours)) == _plain(expected)
    elif done.task == "token_classification":
        pipe = pipeline("token-classification", model=str(folder), aggregation_strategy="first")
        # A mark within a word is one of its own there, and a word that is cut off at the end of the longest input ends
        # with its last piece, where Limbeck's goes on to its own end, as the scorecard counts it.
        asked = [" ".join([token for token in one["tokens"] if token.isalnum()][:8]) for one in done.test]
        asked = [text for text in asked if len(pipe.tokenizer(text)["input_ids"]) < LENGTH]
        assert len(asked) > 10
        assert any(student.predict(asked))
        assert _plain(student.predict(asked)) == _plain(pipe(asked))
        assert _plain(student.predict(asked[0])) == _plain(pipe(asked[0]))
        with pytest.raises(InvalidInput, match="leave it out"):
            student.predict(asked, top_k=2)
    else:
        asked = {"question": row["question"], "context": " ".join(row["context"].split()[:8])}
        answer = student.predict(asked)
        tokens = AutoTokenizer.from_pretrained(folder)(
            *asked.values(), return_tensors="pt", return_offsets_mapping=True
        )
        offsets = tokens.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            out = AutoModelForQuestionAnswering.from_pretrained(folder).eval()(**tokens)
        inside = [i for i, kind in enumerate(tokens.sequence_ids(0)) if kind == 1]
        sums = {(i, j): float(out.start_logits[0, i] + out.end_logits[0, j]) for i in inside for j in inside if i <= j}
        best = max(sums, key=lambda span: sums[span])
        assert (answer["start"], answer["end"]) == (offsets[best[0]][0], offsets[best[1]][1])
        top = np.array(sorted(sums.values(), reverse=True)[:20])
        assert answer["score"] == pytest.approx(float(1 / np.exp(top - top[0]).sum()), abs=1e-4)
        assert student.predict([asked], top_k=3)[0][0]["answer"] == answer["answer"]


def _plain(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_plain(one) for one in answer]
    return {name: pytest.approx(float(v), abs=1e-4) if name == "score" else v for name, v in answer.items()}


def test_the_folder_says_what_it_is(done: Done) -> None:
    described = json.loads((done.result.student / "limbeck.json").read_text())
    assert (described["version"], described["task"], described["max_length"]) == (1, done.task, LENGTH)
    card = (done.result.student / "README.md").read_text()
    assert "## How to use it" in card
    assert "$" not in card


def test_every_metric_of_a_task_is_known() -> None:
    for task in TASKS.values():
        assert task.main_metric in task.metrics
        assert set(task.metrics) <= METRICS.keys() | evaluate.METRICS.keys()
