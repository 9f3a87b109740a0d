"""An exported student as a function from padded batches to logits."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from limbeck.errors import InvalidModel
from limbeck.runtime.encoding import Feeds
from limbeck.runtime.providers import CPU, choose, with_threads

_ONLY_ERRORS = 3
#: On the CPU the fused kernel of addition and layer norm is eight times as slow as the two one after the other, as it
#: sums up a row number by number (onnxruntime 1.32): 23 % of an int8 student's time, 10 % of a float32 one's.
_SLOW_ON_CPUS = ["SkipLayerNormFusion"]
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
    """An ONNX Runtime session; calling it from several threads at once is safe.

    Args:
        path: an ``.onnx`` file.
        threads: that one call computes with; default: as many as the machine has cores.
        providers: ``cuda``, ``openvino``, ``cpu``, the preferred one first; default: whatever is installed.

    Raises:
        InvalidModel: ONNX Runtime cannot load the file, or cannot start a provider that was named.
        InvalidInput: a provider is unknown or not installed.
    """

    def __init__(self, path: Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        chosen = choose(providers)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = _ONLY_ERRORS
        # Several sessions share the cores; one that spins while it waits takes them from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        disabled = None
        if chosen == (CPU,):
            disabled = _SLOW_ON_CPUS
            _share_memory()
            # The weights stay out of what is shared, so that they are given back with their session.
            for name in ("session.use_env_allocators", "session.use_device_allocator_for_initializers"):
                options.add_session_config_entry(name, "1")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=with_threads(chosen, threads), disabled_optimizers=disabled
            )
        except _LOAD_ERRORS as error:
            raise InvalidModel(f"ONNX Runtime cannot load {path}: {error}") from error
        started = self._session.get_providers()
        if providers and chosen[0] not in started:
            raise InvalidModel(f"ONNX Runtime has {chosen[0]}, but cannot start it here; it started {started[0]}.")
        self._inputs = tuple(given.name for given in self._session.get_inputs())

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's names of those that compute, the preferred one first."""
        return tuple(self._session.get_providers())

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:  # (examples, classes)
        """Logits; of ``feeds`` it takes the arrays that the graph has inputs for."""
        logits: NDArray[np.float32] = self._session.run(["logits"], {name: feeds[name] for name in self._inputs})[0]
        return logits

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Everything that the graph gives, in its own order."""
        found: list[NDArray[np.float32]] = self._session.run(None, {name: feeds[name] for name in self._inputs})
        return found


_sharing = threading.Lock()


def _share_memory() -> None:
    with _sharing:  # a second registration is an error
        _registered()


@cache
def _registered() -> None:
    """One pool for what the sessions of this process compute with; each of its own keeps as much as its largest call
    took, which is as much again as the weights of a small student in eight bits."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    grow = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(grow))  # 1: by as much as is asked for
