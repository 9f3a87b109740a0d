"""The forms beside float32: what is in their files, how near they are, and that one that fails is left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from limbeck.export import Exported, export_onnx
from limbeck.formats import FILES, Format
from limbeck.runtime import Predictor
from limbeck.runtime.encoding import Encoder, Row, pad
from limbeck.runtime.session import Session
from limbeck.runtime.student import StudentFacts
from limbeck.tasks.sequence_classification import SequenceClassification
from tests.exported import encoded, texts, write_student


def rows_in(folder: Path) -> list[Row]:
    return Encoder.load(folder, StudentFacts.read(folder)).encode(texts(120))


def export(
    folder: Path, formats: tuple[Format, ...], labels: list[int] | None = None, *, calibrated: bool = True
) -> Exported:
    rows = rows_in(folder)
    data = encoded(rows, labels or [i % 3 for i in range(len(rows))])
    known = rows[:32] if calibrated else []
    return export_onnx(folder, formats, rows, data, task=SequenceClassification(), seed=1, calibration=known)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    folder = write_student(tmp_path_factory.mktemp("forms") / "student")
    return folder, export(folder, tuple(FILES))


def test_every_form_passes_and_answers(student: tuple[Path, Exported]) -> None:
    """Guards against a form that is written and cannot be asked."""
    folder, found = student
    assert [card.format for card in found.cards] == list(FILES)
    assert found.refused == ()
    assert {path.name for path in (folder / "onnx").iterdir()} == {Path(path).name for path in FILES.values()}
    whole = Predictor.load(folder, format="onnx", threads=1).logits(texts(40))
    for card in found.cards:
        small = Predictor.load(folder, format=card.format, threads=1)
        assert small.format == card.format
        assert np.abs(small.logits(texts(40)) - whole).max() < 0.1 * np.abs(whole).max()
        assert card.label_agreement > 0.9


def test_static_scales_multiply_in_8_bits(student: tuple[Path, Exported]) -> None:
    """Guards against onnxruntime leaving the projections of attention, or all of it, in float32."""
    model = onnx.load(student[0] / FILES["onnx-int8-static"])
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Attention"] == 0
    assert kinds["MultiHeadAttention"] == 2
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * 4  # a layer's projections, the one behind them, and the two of its feed-forward part
    assert all(makers[name] == "DequantizeLinear" for node in products for name in node.input)


def test_static_scales_know_no_neighbours(student: tuple[Path, Exported]) -> None:
    """Guards against scales that are measured anew with each batch, as those of onnx-int8 are."""
    rows = rows_in(student[0])[:6]
    session = Session(student[0] / FILES["onnx-int8-static"], threads=1)
    together = session(pad(rows, 0))
    alone = np.concatenate([session(pad([row, row], 0))[:1] for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_half_precision_takes_and_gives_what_the_others_do(student: tuple[Path, Exported]) -> None:
    graph = onnx.load(student[0] / FILES["onnx-fp16"]).graph
    assert [one.type.tensor_type.elem_type for one in graph.output] == [onnx.TensorProto.FLOAT]
    weights = [one.data_type for one in graph.initializer if len(one.dims) == 2]
    assert onnx.TensorProto.FLOAT16 in weights
    assert onnx.TensorProto.FLOAT not in weights


def overflowing(folder: Path) -> Path:
    """A student that always answers with its third label, and in half precision, which holds no such logits, nearly
    always with its second."""
    student = write_student(folder / "student")
    weights = load_file(student / "model.safetensors")
    weights["classifier.bias"][1], weights["classifier.bias"][2] = 1e6, 2e6
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    return student


def test_validation_decides_which_form_goes_out(tmp_path: Path) -> None:
    """Guards the test split, which must choose nothing: the form is right on validation, and wrong there."""
    folder = overflowing(tmp_path)
    rows = rows_in(folder)
    here, there = encoded(rows, [2] * len(rows)), encoded(rows, [1] * len(rows))
    task = SequenceClassification()
    (card,) = export_onnx(folder, ("onnx-fp16",), rows, here, task=task, seed=1, judge=(rows, there)).cards
    assert card.metrics["accuracy"].value == card.label_agreement < 0.1


def test_a_form_that_fails_is_left_out_and_the_rest_stays(tmp_path: Path) -> None:
    """Guards against a form that answers wrongly going out, and against a job that fails for it: the logits of this
    student are beyond what half precision holds, so that its answers turn."""
    folder = overflowing(tmp_path)
    found = export(folder, ("onnx", "onnx-fp16"), [2] * 120)
    assert [card.format for card in found.cards] == ["onnx"]
    (refused,) = found.refused
    assert refused.format == "onnx-fp16"
    assert "as onnx-fp16" in refused.reason
    assert [path.name for path in (folder / "onnx").iterdir()] == ["model.onnx"]


def test_static_scales_need_texts(tmp_path: Path) -> None:
    folder = write_student(tmp_path / "student")
    found = export(folder, ("onnx-int8-static",), calibrated=False)
    assert (found.cards, [one.format for one in found.refused]) == ((), ["onnx-int8-static"])
    assert "needs training texts" in found.refused[0].reason
    assert list((folder / "onnx").iterdir()) == []
