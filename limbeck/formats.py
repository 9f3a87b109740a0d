"""The forms that a student can be had in beside safetensors, and where its folder has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Format = Literal["onnx", "onnx-int8", "onnx-int8-static", "onnx-fp16"]

#: Below a student's folder; the form that answers unless another is asked for comes first.
FILES: Mapping[Format, str] = {
    "onnx": "onnx/model.onnx",
    "onnx-int8": "onnx/model_int8.onnx",
    "onnx-int8-static": "onnx/model_int8_static.onnx",
    "onnx-fp16": "onnx/model_fp16.onnx",
}

EIGHT_BITS: frozenset[Format] = frozenset({"onnx-int8", "onnx-int8-static"})
