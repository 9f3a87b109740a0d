"""What the tests of embeddings share: texts, alone or in pairs with a score, and a small job on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.limbeck.task_data import texts

LENGTH = 32


def rows(scored: bool, count: int) -> list[dict[str, Any]]:
    found = [text for _, text in texts(count)]
    if not scored:
        return [{"text": text} for text in found]
    pairs = zip(found, found[3:] + found[:3], strict=True)
    return [{"sentence1": a, "sentence2": b, "score": _overlap(a, b)} for a, b in pairs]


def _overlap(one: str, other: str) -> float:
    left, right = set(one.lower().split()), set(other.lower().split())
    return round(5 * len(left & right) / len(left | right), 4)


def write(folder: Path, scored: bool) -> Path:
    folder.mkdir(parents=True)
    whole = rows(scored, 160)
    for name, part in (("train", whole[:96]), ("validation", whole[96:128]), ("test", whole[128:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


def document(teacher: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": f"path:{teacher}",
        "dataset": f"path:{folder}",
        "task": "embeddings",
        "student": [1, 3],
        "method": "kd",
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "max_length": LENGTH},
    } | changes
