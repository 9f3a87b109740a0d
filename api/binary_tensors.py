"""Tensors in the binary form of Triton's extension: in the same body as the document, one after the other behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Response

#: The header that says how many bytes of a body are the document, where that is not all.
JSON_LENGTH = "Inference-Header-Content-Length"


def unpacked(data: memoryview) -> list[str]:
    """The texts of a BYTES tensor: each four bytes of length, little end first, and UTF-8.

    Raises:
        ValueError: it is none.
    """
    texts = []
    while data:
        if len(data) < 4 or len(data) < 4 + (size := struct.unpack("<I", data[:4])[0]):
            raise ValueError("the binary data ends within a text")
        try:
            texts.append(bytes(data[4 : 4 + size]).decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"text {len(texts)} is not UTF-8: {error}") from error
        data = data[4 + size :]
    return texts


def packed(datatype: str, data: Sequence[Any]) -> bytes:
    """A tensor of texts (BYTES) or numbers (FP32)."""
    if datatype == "FP32":
        return np.asarray(data, dtype="<f4").tobytes()
    texts = [text.encode() for text in data]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def response(document: Mapping[str, Any], binary: Collection[str] = (), status: int = 200) -> Response:
    """The document, and those of its ``outputs`` behind it whose names are in ``binary``; without any it is JSON."""
    tensors = []
    for output in document.get("outputs", ()):
        if output["name"] in binary:
            tensors.append(packed(output["datatype"], output.pop("data")))
            output["parameters"] = {"binary_data_size": len(tensors[-1])}
    head = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    if not tensors:
        return Response(head, status, media_type="application/json")
    headers = {JSON_LENGTH: str(len(head))}
    return Response(b"".join([head, *tensors]), status, headers, "application/octet-stream")
