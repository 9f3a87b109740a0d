"""The files of a student's exported forms, made of the float32 graph by onnxruntime's own tools; judged elsewhere.

``onnx-int8``: weights in 8 bits, one scale per output channel, of which 7 are used ("reduced range"), as the int16 sums
of CPUs without VNNI overflow otherwise. Activations are quantised as they come, with one scale for a whole batch, so
that an answer depends a little on its neighbours.

``onnx-int8-static``: the same weights; activations have fixed scales, the ranges that they took on training texts
(QuantizeLinear and DequantizeLinear around each multiplication, "QDQ"). Answers do not depend on neighbours.

``onnx-fp16``: weights and computation in half precision, inputs and logits as ever. For GPUs: a CPU answers as well, by
casting to and fro.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import ExportFailed
from limbeck.formats import Format
from limbeck.runtime.encoding import Feeds

#: What is quantised with fixed scales: where the time goes and, with the embeddings' table, the bytes.
_QUANTISED = ["MatMul", "Gemm", "Gather"]


def write_form(name: Format, whole: Path, target: Path, calibration: Sequence[Feeds]) -> None:
    """Write the form ``name`` (not ``onnx``) of the float32 graph ``whole``.

    Args:
        calibration: padded batches of training texts; only ``onnx-int8-static`` looks at them.

    Raises:
        ExportFailed: there are no texts to calibrate on.
    """
    with _quiet_tools():
        if name == "onnx-int8":
            _write_dynamic(whole, target)
        elif name == "onnx-int8-static":
            _write_static(whole, target, calibration)
        else:
            _write_half(whole, target)


def _write_dynamic(whole: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Convolutions stay as they are: ONNX Runtime has none for weights with a sign and activations as they come.
    graph = onnx.load(whole, load_external_data=False).graph
    left = [node.name for node in graph.node if node.op_type == "Conv"]
    options = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(whole, target, nodes_to_exclude=left, **options)


def _write_static(whole: Path, target: Path, calibration: Sequence[Feeds]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if not calibration:
        raise ExportFailed("onnx-int8-static needs training texts to calibrate on, and there are none.")
    with tempfile.TemporaryDirectory() as aside:
        split = Path(aside, "split.onnx")
        names = _split_attention(whole, split)
        quantize_static(
            split,
            target,
            _reader(calibration, names),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _write_half(whole: Path, target: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(whole), keep_io_types=True), target)


def _reader(calibration: Sequence[Feeds], names: Sequence[str]) -> Any:
    """The batches one after the other, as onnxruntime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> Mapping[str, Any] | None:  # type: ignore[override,unused-ignore]
            feeds = next(self._left, None)
            return None if feeds is None else {name: feeds[name] for name in names}

    return Reader()


def _split_attention(whole: Path, target: Path) -> tuple[str, ...]:
    """Write the graph with each ``Attention`` as a multiplication and a ``MultiHeadAttention``.

    onnxruntime quantises no ``Attention`` with fixed scales: its three projections, a quarter of the work, would stay
    in float32.

    Returns:
        The names of the graph's inputs.
    """
    import onnx

    model = onnx.load(whole)
    nodes = []
    for number, node in enumerate(model.graph.node):
        nodes += _split(node, f"split_{number}") if node.op_type == "Attention" else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)
    return tuple(given.name for given in model.graph.input)


def _split(node: Any, name: str) -> list[Any]:
    from onnx import helper

    states, weight, bias, mask = node.input  # (…, hidden), (hidden, 3 hidden), (3 hidden,), (examples, tokens)
    (heads,) = [one.i for one in node.attribute if one.name == "num_heads"]
    product, whole = f"{name}_product", f"{name}_projections"
    parts = [f"{name}_{part}" for part in ("queries", "keys", "values")]
    return [
        helper.make_node("MatMul", [states, weight], [product], name=product),
        helper.make_node("Add", [product, bias], [whole], name=whole),
        helper.make_node("Split", [whole], parts, name=f"{name}_parts", axis=2, num_outputs=3),
        helper.make_node(
            "MultiHeadAttention",
            [*parts, "", mask],
            list(node.output),
            name=f"{name}_attention",
            domain="com.microsoft",
            num_heads=heads,
        ),
    ]


@contextmanager
def _quiet_tools() -> Iterator[None]:
    """Without the quantisers' advice, through the root logger, to run shape inference first, which changes nothing
    here, and without the converter's warnings of numbers below half precision's smallest."""
    root = logging.getLogger()
    advice = _Advice()
    root.addFilter(advice)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(advice)


class _Advice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()
