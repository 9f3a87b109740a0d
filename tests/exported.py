"""Tiny students as a job leaves them: a folder with limbeck.json and onnx/, exported once for the whole run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from limbeck.scorecard import ExportCard
from limbeck.tasks.sequence_classification import SequenceClassification
from tests.tiny import docstrings, write_tiny_bert

if TYPE_CHECKING:
    from limbeck.batches import Encoded
    from limbeck.runtime.encoding import Row

LABELS = ("gui", "networking", "testing")
MAX_LENGTH = 48


def texts(count: int) -> list[str]:
    """Real docstrings of mixed areas and lengths."""
    pools = [docstrings(label) for label in LABELS]
    return [pools[i % len(pools)][i // len(pools)] for i in range(count)]


def write_student(folder: Path, *, pair: bool = False, layers: int = 2, seed: int = 0) -> Path:
    """A student that is not exported yet, with random weights."""
    write_tiny_bert(folder, layers=layers, labels=LABELS, seed=seed)
    described = {
        "version": 1,
        "task": "sequence_classification",
        "labels": LABELS,
        "max_length": MAX_LENGTH,
        "pair": pair,
    }
    (folder / "limbeck.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def export_student(folder: Path, formats: tuple[str, ...], *, pair: bool = False) -> tuple[ExportCard, ...]:
    """Export it, checked on 150 docstrings with labels that mean nothing."""
    from limbeck.export import export_onnx
    from limbeck.runtime.encoding import Encoder
    from limbeck.runtime.student import StudentFacts

    firsts = texts(150)
    encoder = Encoder.load(folder, StudentFacts.read(folder))
    rows = encoder.encode(firsts, firsts[::-1] if pair else None)
    labels = [i % len(LABELS) for i in range(len(rows))]
    return export_onnx(folder, formats, rows, encoded(rows, labels), task=SequenceClassification(), seed=1).cards  # type: ignore[arg-type]


def encoded(rows: Sequence[Row], labels: Sequence[int]) -> Encoded:
    """Rows with a label each, as the trained student's data are."""
    import numpy as np

    from limbeck.batches import Encoded

    starts = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    ids = np.array([token for row in rows for token in row.ids], dtype=np.int32)
    return Encoded(ids, None, starts, np.asarray(labels, dtype=np.int64))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[ExportCard, ...]]:
    """A student of single texts as onnx and onnx-int8, and its export cards. For reading only."""
    folder = write_student(tmp_path_factory.mktemp("students") / "single")
    return folder, export_student(folder, ("onnx", "onnx-int8"))


@pytest.fixture(scope="session")
def exported_student(exported: tuple[Path, tuple[ExportCard, ...]]) -> Path:
    """The folder of :func:`exported`."""
    return exported[0]


@pytest.fixture(scope="session")
def exported_exits_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student of three layers with early exits at speed 0.9, as onnx. For reading only."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from limbeck import exits
    from limbeck.exit_graph import write_exit_graphs

    folder = write_student(tmp_path_factory.mktemp("students") / "exits", layers=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # by chance, branches may be drawn of which none tells texts apart
        exits.attach(model)
    exits.save(model, folder)
    described = json.loads((folder / "limbeck.json").read_text()) | {"exits": {"layers": 3, "speed": 0.9}}
    (folder / "limbeck.json").write_text(json.dumps(described), encoding="utf-8")
    export_student(folder, ("onnx",))
    write_exit_graphs(model, folder)
    return folder


@pytest.fixture(scope="session")
def exported_pair_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student of pairs of texts, as onnx. For reading only."""
    folder = write_student(tmp_path_factory.mktemp("students") / "pair", pair=True)
    export_student(folder, ("onnx",), pair=True)
    return folder
