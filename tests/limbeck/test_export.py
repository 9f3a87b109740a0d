"""Exported students answer as the trained ones do, or are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from limbeck.batches import Encoded
from limbeck.errors import ExportFailed, Interrupted
from limbeck.evaluate import score
from limbeck.export import compare, export_onnx, onnx_runner, rows_of, torch_runner
from limbeck.graph import fuse_attention, write_graph
from limbeck.runtime.encoding import Row, pad
from limbeck.runtime.session import Session
from limbeck.scorecard import ExportCard
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.tasks.token_classification import TokenClassification
from tests.exported import encoded, export_student, write_student

Exported = tuple[Path, tuple[ExportCard, ...]]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def random_rows(count: int, *, vocabulary: int, longest: int, pad_id: int) -> list[Row]:
    draw = np.random.default_rng(0)
    lengths = [1, longest, *draw.integers(2, longest, count - 2).tolist()]
    return [Row(draw.integers(pad_id + 1, vocabulary, n).tolist(), draw.integers(0, 2, n).tolist()) for n in lengths]


def test_the_card_says_what_was_compared(exported: Exported) -> None:
    """Guards against a card about other files or other examples than those that were checked."""
    folder, (whole, small) = exported
    assert (whole.format, small.format) == ("onnx", "onnx-int8")
    assert whole.bytes == (folder / "onnx/model.onnx").stat().st_size
    assert small.bytes == (folder / "onnx/model_int8.onnx").stat().st_size < 0.6 * whole.bytes
    assert whole.examples == small.examples == 150
    assert whole.max_logit_difference < 1e-5 < small.max_logit_difference
    assert whole.label_agreement == 1.0
    assert small.label_agreement > 0.9
    assert set(whole.metrics) == {"accuracy", "macro_f1"}


def test_attention_is_one_operator(exported_student: Path) -> None:
    """Guards against the exporter or transformers changing so that the slow graph comes out without a word."""
    found = operators(exported_student / "onnx/model.onnx")
    assert found["Attention"] == 2
    assert found["Softmax"] == 0
    small = operators(exported_student / "onnx/model_int8.onnx")
    assert small["QAttention"] == 2
    assert small["MatMulInteger"] > 0


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_the_last_layer_answers_from_the_first_token(family: str, tmp_path: Path) -> None:
    """Guards the gain, a fifth of a student's time, which no comparison of answers would miss; and tags of tokens,
    which need all of them."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    for auto, task, expected in (
        (AutoModelForSequenceClassification, TASK, "1"),
        (AutoModelForTokenClassification, TokenClassification(), "sequence"),
    ):
        write_graph(auto.from_config(config_of(family)), task, tmp_path / "model.onnx")
        assert fed_forward(tmp_path / "model.onnx") == ["sequence", expected]


def fed_forward(path: Path) -> list[str]:
    """How many tokens of a text each layer's feed-forward part sees."""
    graph = onnx.load(path).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    seen = [shapes[node.output[0]] for node in graph.node if node.op_type == "Gelu"]
    return [shape[1].dim_param or str(shape[1].dim_value) for shape in seen if shape[-1].dim_value == 32]


def test_nothing_of_the_machine_is_in_the_file(exported_student: Path) -> None:
    """Guards against stack traces, which the exporter writes into every node, going out with a student."""
    for name in ("model.onnx", "model_int8.onnx"):
        content = (exported_student / "onnx" / name).read_bytes()
        for trace in (str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[2]), "stack_trace"):
            assert trace.encode() not in content


def config_of(family: str) -> Any:
    from transformers import BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

    common = {"vocab_size": 100, "max_position_embeddings": 42, "num_labels": 3, "initializer_range": 0.2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    match family:
        case "roberta":
            return RobertaConfig(**common, **sizes, type_vocab_size=1, pad_token_id=1)
        case "electra":
            return ElectraConfig(**common, **sizes, embedding_size=8)
        case "bert":
            return BertConfig(**common, **sizes)
        case _:
            return DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=32)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_every_family_answers_as_in_torch(family: str, tmp_path: Path) -> None:
    """Guards against padding, positions behind the padding's, or token types that only BERT has, and against the
    attention modules being replaced in the caller's model."""
    from transformers import AutoModelForSequenceClassification

    config = config_of(family)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    before = [type(module) for module in model.modules()]
    write_graph(model, TASK, tmp_path / "model.onnx")
    assert [type(module) for module in model.modules()] == before
    assert model.config._attn_implementation == "sdpa"
    assert operators(tmp_path / "model.onnx")["Attention"] == 2
    session, reference = Session(tmp_path / "model.onnx", threads=1), torch_runner(model, TASK)
    rows = random_rows(12, vocabulary=100, longest=40, pad_id=config.pad_token_id)
    for batch in (rows[:1], rows[1:2], rows[:5], rows):
        feeds = pad(batch, config.pad_token_id)
        np.testing.assert_allclose(session(feeds), reference(feeds), atol=1e-5)


def test_an_unknown_attention_is_refused() -> None:
    """Guards against a new family that is exported with some of its attention left out."""
    from transformers import AutoModelForSequenceClassification, MPNetConfig

    config = MPNetConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ExportFailed, match="attention of a mpnet"):
        fuse_attention(AutoModelForSequenceClassification.from_config(config))


def test_int8_alone_leaves_no_other_file(tmp_path: Path) -> None:
    """Guards against a large file that nobody asked for."""
    folder = write_student(tmp_path / "student")
    (card,) = export_student(folder, ("onnx-int8",))
    assert card.format == "onnx-int8"
    assert [path.name for path in (folder / "onnx").iterdir()] == ["model_int8.onnx"]


def test_a_broken_student_is_refused_and_its_file_is_gone(tmp_path: Path) -> None:
    """Guards against NaN, which is neither more nor less than the tolerance, passing for equal."""
    from safetensors.torch import load_file, save_file

    folder = write_student(tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportFailed, match="does not answer as the trained one"):
        export_student(folder, ("onnx",))
    assert list((folder / "onnx").iterdir()) == []


def test_it_can_be_stopped(tmp_path: Path) -> None:
    """Guards against a cancelled job that exports to the end."""

    def stop() -> None:
        raise Interrupted("stop")

    folder = write_student(tmp_path / "student")
    with pytest.raises(Interrupted):
        export_onnx(folder, ("onnx",), [Row([1], [0])], encoded([Row([1], [0])], [0]), task=TASK, seed=1, poll=stop)


def logits_of(labels: NDArray[np.int64], wrong: int) -> NDArray[np.float32]:
    """Three classes; the first ``wrong`` rows answer with the next class."""
    answered = labels.copy()
    answered[:wrong] = (answered[:wrong] + 1) % 3
    return np.eye(3, dtype=np.float32)[answered] * 4


LABELS = np.arange(1000) % 3
DATA = encoded([Row([1], [0])] * 1000, LABELS.tolist())
TASK = SequenceClassification()


@pytest.mark.parametrize(
    ("wrong", "refused"),
    [(0, False), (25, False), (60, True), (400, True)],
)
def test_int8_is_refused_when_it_surely_loses_more_than_two_points(wrong: int, refused: bool, tmp_path: Path) -> None:
    """Guards against an 8-bit student that is much worse, and against refusing one for what may be chance."""
    (tmp_path / "file").write_bytes(b"x")
    right, given = logits_of(LABELS, 0), logits_of(LABELS, wrong)
    if refused:
        with pytest.raises(ExportFailed, match="points of accuracy as onnx-int8"):
            compare("onnx-int8", tmp_path / "file", given, right, DATA, TASK, 1)
        return
    card = compare("onnx-int8", tmp_path / "file", given, right, DATA, TASK, 1)
    assert card.label_agreement == 1 - wrong / 1000
    assert card.metrics["accuracy"].value == pytest.approx(score("accuracy", given.argmax(axis=1), LABELS))


@pytest.mark.parametrize(("there", "here"), [(0, 400), (400, 0)])
def test_a_form_is_chosen_where_its_figures_are_not_from(there: int, here: int, tmp_path: Path) -> None:
    """Guards the figures of the test split, which chose the form that they are of: validation decides."""
    (tmp_path / "file").write_bytes(b"x")
    right, judged = logits_of(LABELS, 0), (logits_of(LABELS, there), logits_of(LABELS, 0), DATA)
    if there:
        with pytest.raises(ExportFailed, match="points of accuracy as onnx-int8"):
            compare("onnx-int8", tmp_path / "file", logits_of(LABELS, here), right, DATA, TASK, 1, judged)
        return
    card = compare("onnx-int8", tmp_path / "file", logits_of(LABELS, here), right, DATA, TASK, 1, judged)
    assert card.metrics["accuracy"].value == pytest.approx(1 - here / 1000)


@pytest.mark.parametrize(("off", "refused"), [(0.1, False), (0.5, True)])
def test_numbers_that_are_in_order_and_off_are_refused(off: float, refused: bool, tmp_path: Path) -> None:
    """Guards a regression, whose metric is of the order of its answers: half precision has years 1 apart."""
    (tmp_path / "file").write_bytes(b"x")
    right = np.random.default_rng(0).normal(2000, 3, (1000, 1)).astype(np.float32)
    data = encoded([Row([1], [0])] * 1000, right[:, 0].tolist())
    given = right + np.float32(3 * off)
    if refused:
        with pytest.raises(ExportFailed, match=r"off by 5\d\.\d% of their spread \(allowed: 20%\)"):
            compare("onnx-fp16", tmp_path / "file", given, right, data, Regression(), 1)
    else:
        compare("onnx-fp16", tmp_path / "file", given, right, data, Regression(), 1)


def test_numbers_are_the_same_by_what_they_are_counted_in(tmp_path: Path) -> None:
    """Guards a student whose answers are nearly constant: what float32 rounds was more than a hundredth of their
    spread, and an exact graph was said to answer otherwise."""
    (tmp_path / "file").write_bytes(b"x")
    draw = np.random.default_rng(0)
    labels = draw.normal(3, 1.5, 1000)
    data = encoded([Row([1], [0])] * 1000, [0] * 1000)
    data = replace(data, labels=labels.astype(np.float32))
    flat = (3 + 1e-5 * draw.normal(size=(1000, 1))).astype(np.float32)
    rounded = flat + np.float32(3e-7) * draw.choice([-1, 0, 1], (1000, 1)).astype(np.float32)
    assert compare("onnx", tmp_path / "file", rounded, flat, data, Regression(), 1).label_agreement == 1
    task, off = Regression(), np.where(np.arange(1000) < 100, 0.02, 0.005) * labels.std()
    assert task.agreement(labels, labels + off, labels) == 0.9
    assert task.agreement(flat[:, 0], flat[:, 0] + 1e-3, np.full(1000, 3.0)) == 1
    assert task.agreement(flat[:, 0], flat[:, 0] + 0.02, np.full(1000, 3.0)) == 0


@pytest.mark.parametrize("where", ["test", "validation"])
def test_a_form_without_finite_answers_is_refused(where: str, tmp_path: Path) -> None:
    """Guards against half precision that overflows on the test split alone, whose figures no JSON can hold."""
    (tmp_path / "file").write_bytes(b"x")
    right, given = logits_of(LABELS, 0), logits_of(LABELS, 0)
    given[7, 0] = np.nan
    found, judged = (given, right) if where == "test" else (right, given)
    with pytest.raises(ExportFailed, match="NaN or infinite values as onnx-fp16"):
        compare("onnx-fp16", tmp_path / "file", found, right, DATA, TASK, 1, (judged, right, DATA))


@pytest.mark.parametrize(("off", "refused"), [(0.003, False), (0.005, True)])
def test_float32_has_to_be_within_a_thousandth_of_the_largest_logit(off: float, refused: bool, tmp_path: Path) -> None:
    """Guards against an export that drifts, in which the labels of easy texts still agree. The largest logit is 4."""
    (tmp_path / "file").write_bytes(b"x")
    right = logits_of(LABELS, 0)
    given = right.copy()
    given[7, 0] += off
    if refused:
        with pytest.raises(ExportFailed, match="logits differ"):
            compare("onnx", tmp_path / "file", given, right, DATA, TASK, 1)
    else:
        compare("onnx", tmp_path / "file", given, right, DATA, TASK, 1)


def test_float32_has_to_give_the_same_labels(tmp_path: Path) -> None:
    """Guards against a flat model whose labels turn although its logits hardly differ."""
    (tmp_path / "file").write_bytes(b"x")
    right = logits_of(LABELS, 0) * 1e-4
    with pytest.raises(ExportFailed, match=r"99.70% of its answers"):
        compare("onnx", tmp_path / "file", logits_of(LABELS, 3) * np.float32(1e-4), right, DATA, TASK, 1)


def test_rows_of_a_compact_vocabulary_are_in_original_ids(exported_student: Path) -> None:
    """Guards against exports being compared on other tokens than the student was trained on."""
    kept = np.array([0, 5, 900, 1500])
    data = Encoded(
        np.array([1, 2, 3, 2], dtype=np.int32), None, np.array([0, 3, 4], dtype=np.int64), np.zeros(2, dtype=np.int64)
    )
    rows = rows_of(data, kept)
    assert rows == [Row([5, 900, 1500], [0, 0, 0]), Row([900], [0])]
    feeds = pad(rows, 0)
    session = onnx_runner(exported_student, "onnx", threads=1)

    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(exported_student)
    table = model.get_input_embeddings()
    whole = session(feeds)
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(table.weight[torch.from_numpy(kept)], padding_idx=0))
    np.testing.assert_allclose(torch_runner(model, TASK, kept=kept)(feeds), whole, atol=1e-5)
