"""What the tests of masked LM share: texts with words hidden in them, and a small job on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.batches import Encoded
from limbeck.data.corpus import Split
from limbeck.students import read_config
from limbeck.tasks.masked_lm import MaskedLM
from limbeck.tokenizing import load_tokenizer
from tests.limbeck.task_data import texts

LENGTH = 32
TASK = MaskedLM()


def encoded(folder: Path, count: int = 60) -> Encoded:
    found = [text for _, text in texts(count)]
    tokenizer = load_tokenizer(folder, read_config(folder))
    return TASK.encode(tokenizer, Split(found, None, [None] * count), (), LENGTH, lambda: None)


def config(folder: Path, corpus: Path, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": f"path:{folder}",
        "dataset": f"path:{corpus}",
        "student": 2,
        "method": "kd",
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "max_length": LENGTH},
    } | changes
