"""The student that every server gets, and the texts that it is asked."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import ROOT

CACHE = Path(__file__).parent.parent / ".cache"
LABELS = ("negative", "positive")
MAX_LENGTH = 64
#: Texts of one kind that the requests go round in.
_TEXTS = 512
#: Of the folders below; another one where what is written into them changes.
_VERSION = 3


def student_folder(layers: int) -> Path:
    """A cut of the built-in teacher with both exported forms, made once.

    Its head is random: only time is measured, and that servers agree about it.
    """
    folder = CACHE / "serving" / f"minilm-{layers}-v{_VERSION}"
    if (folder / "done").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from limbeck.sources import builtin_minilm

    shutil.rmtree(folder, ignore_errors=True)
    source = builtin_minilm().path
    config: Any = AutoConfig.from_pretrained(source)
    config.num_hidden_layers, config.id2label = layers, dict(enumerate(LABELS))
    config.label2id = {name: place for place, name in config.id2label.items()}
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype="float32")
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = MAX_LENGTH  # other servers cut by this
    tokenizer.save_pretrained(folder)
    _export(folder)
    (folder / "done").touch()
    return folder


def _export(folder: Path) -> None:
    from limbeck.batches import Encoded
    from limbeck.export import export_onnx
    from limbeck.runtime.encoding import Encoder
    from limbeck.runtime.student import StudentFacts
    from limbeck.tasks.sequence_classification import SequenceClassification

    described = {"version": 1, "task": "sequence_classification", "labels": LABELS, "max_length": MAX_LENGTH}
    (folder / "limbeck.json").write_text(json.dumps(described | {"pair": False}))
    rows = Encoder.load(folder, StudentFacts.read(folder)).encode(texts_of("short")[:200])
    starts = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    ids = np.array([token for row in rows for token in row.ids], dtype=np.int32)
    # Labels that mean nothing: int8's gate cannot fail on them, which is why this is no way to judge a student.
    data = Encoded(ids, None, starts, np.arange(len(rows)) % 2)
    export_onnx(folder, ("onnx", "onnx-int8"), rows, data, task=SequenceClassification(), seed=1)


def texts_of(kind: str) -> list[str]:
    """Real texts: SST-2's sentences, or two of them together, which are about 40 tokens."""
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data"))
    with gzip.open(data / "sst2_glue" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        sentences = [str(json.loads(line)["text"]) for line in lines]
    if kind == "short":
        return sentences[:_TEXTS]
    return [f"{one} {two}" for one, two in zip(sentences[:_TEXTS], sentences[_TEXTS - len(sentences) :], strict=False)]
