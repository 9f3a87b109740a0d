"""Small data sets of every task made of real docstrings: what is to be found follows from the words themselves."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tests.tiny import docstrings

_TOKEN = re.compile(r"'s\b|\w+(?:(?!'s\b)[^\w\s]\w+)*|[^\w\s]+")
AREAS = ("gui", "networking", "numbers")


def texts(count: int) -> list[tuple[str, str]]:
    """(area, text), the areas in turn."""
    return [(area, docstrings(area)[row]) for row in range(-(-count // len(AREAS))) for area in AREAS][:count]


def _multi_label(area: str, text: str) -> dict[str, Any]:
    return {"text": text, "labels": [area, *(["returns"] if "eturn" in text else [])]}


def _regression(area: str, text: str) -> dict[str, Any]:
    return {"sentence1": text, "sentence2": area, "label": AREAS.index(area) * 1.5 + 0.25}


def _tokens(area: str, text: str) -> dict[str, Any]:
    # As such data has them: marks stand for themselves, but not within a word (os.path, RFC-822, 7:30).
    tokens = _TOKEN.findall(text)
    # By length: nearly every word is an entity, so that a tiny model soon says something else than "O".
    kinds = ["short" if len(token) <= 4 else "long" if token.isalpha() else None for token in tokens]
    tags = [
        "O" if kind is None else f"{'I' if kind == before else 'B'}-{kind}"
        for before, kind in zip([None, *kinds], kinds, strict=False)
    ]
    return {"tokens": tokens, "tags": tags}


def _question(area: str, text: str) -> dict[str, Any]:
    words = text.split()
    answer = " ".join(words[:2])
    return {"question": "How does it begin?", "context": text, "answers": {"text": [answer], "answer_start": [0]}}


EXAMPLES = {
    "multi_label": _multi_label,
    "regression": _regression,
    "token_classification": _tokens,
    "question_answering": _question,
}


def examples(task: str, count: int) -> list[dict[str, Any]]:
    return [EXAMPLES[task](area, text) for area, text in texts(count)]


def write(task: str, folder: Path, *, rows: int = 96) -> Path:
    """``{train,validation,test}.jsonl`` of the task's examples, no text in two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = examples(task, rows + 2 * (rows // 3))
    random.Random(0).shuffle(found)
    for split, part in (
        ("train", found[:rows]),
        ("validation", found[rows : rows + rows // 3]),
        ("test", found[rows + rows // 3 :]),
    ):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder
