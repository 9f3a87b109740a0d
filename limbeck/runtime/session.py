"""An exported student as a function from padded batches to logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from limbeck.errors import InvalidModel
from limbeck.runtime.encoding import Feeds

_ONLY_ERRORS = 3
#: They share no base but Exception.
_LOAD_ERRORS = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)


class Session:
    """An ONNX Runtime session on the CPU; calling it from several threads at once is safe.

    Args:
        path: an ``.onnx`` file.
        threads: that one call computes with; default: as many as the machine has cores.

    Raises:
        InvalidModel: ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = _ONLY_ERRORS
        # Several sessions share the cores; one that spins while it waits takes them from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            raise InvalidModel(f"ONNX Runtime cannot load {path}: {error}") from error
        self._inputs = tuple(given.name for given in self._session.get_inputs())

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:  # (examples, classes)
        """Logits; of ``feeds`` it takes the arrays that the graph has inputs for."""
        logits: NDArray[np.float32] = self._session.run(["logits"], {name: feeds[name] for name in self._inputs})[0]
        return logits

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Everything that the graph gives, in its own order."""
        found: list[NDArray[np.float32]] = self._session.run(None, {name: feeds[name] for name in self._inputs})
        return found
