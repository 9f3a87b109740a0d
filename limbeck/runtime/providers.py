"""What computes: ONNX Runtime's execution providers, by short names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import onnxruntime

from limbeck.errors import InvalidInput, Problem

Provider = Literal["cuda", "openvino", "cpu"]

#: In the order in which they are taken where nobody names one.
_NAMES: Mapping[str, str] = {
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
#: The packages on PyPI that bring them; each stands in the place of ``onnxruntime``.
_PACKAGES = {"cuda": "onnxruntime-gpu", "openvino": "onnxruntime-openvino"}
CPU = _NAMES["cpu"]
_OPENVINO = _NAMES["openvino"]


def installed() -> tuple[str, ...]:
    """Short names of the providers that this ONNX Runtime was built with."""
    built = onnxruntime.get_available_providers()
    return tuple(name for name, whole in _NAMES.items() if whole in built)


def choose(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """ONNX Runtime's names, in the order in which it shall ask them.

    The CPU is always the last: it computes the operators that the others lack.

    Args:
        wanted: short names; default, and with an empty sequence: whatever is installed.

    Raises:
        InvalidInput: at ``/providers/0``, … for a name that is unknown or not installed.
    """
    here = installed()
    problems = []
    for place, name in enumerate(wanted or ()):
        if name not in _NAMES:
            problems.append(Problem(f"/providers/{place}", f"found {name!r}; allowed: {', '.join(_NAMES)}"))
        elif name not in here:
            package = f"; {_PACKAGES[name]} brings it" if name in _PACKAGES else ""
            problems.append(
                Problem(
                    f"/providers/{place}", f"{name} is not in this ONNX Runtime, which has {', '.join(here)}{package}"
                )
            )
    if problems:
        shown = "; ".join(f"{one.pointer}: {one.detail}" for one in problems)
        raise InvalidInput(f"The execution providers cannot be used: {shown}", problems)
    names = [_NAMES[name] for name in wanted or here]
    return tuple(dict.fromkeys([*names, CPU]))


def that_branch(wanted: Sequence[str] | None) -> list[str]:
    """Short names of those providers that compute both branches of an ``If``, the preferred one first.

    OpenVINO does not: a session whose first call took one branch gives that one's zeros for the other, where both have
    one row (onnxruntime-openvino 1.24.1).

    Args:
        wanted: as for :func:`choose`, which refuses the same names.
    """
    choose(wanted)
    return [name for name in wanted or installed() if name != "openvino"] or ["cpu"]


def with_threads(chosen: Sequence[str], threads: int | None) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's names with each one's options.

    OpenVINO has threads of its own, as many as there are cores in each session, which fight over them where several
    sessions or calls compute at once.

    Args:
        chosen: ONNX Runtime's names.
        threads: that one call computes with; default: as the provider likes.
    """
    own = {} if threads is None else {"num_of_threads": str(threads)}
    return [(name, own if name == _OPENVINO else {}) for name in chosen]
