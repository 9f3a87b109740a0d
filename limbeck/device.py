"""What a run computes on, in which precision, and from which random state."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.machine import cpu_name, installed
from limbeck.scorecard import Hardware

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Device:
    """Where tensors live and how they are multiplied; weights are always float32."""

    torch: torch.device
    precision: Literal["float32", "bfloat16"]

    @classmethod
    def choose(cls, precision: Literal["auto", "float32", "bfloat16"], number: int = 0) -> Device:
        """CUDA where there is one, in bfloat16; else the CPU in float32, which most CPUs are fastest in.

        Args:
            number: which of several GPUs.
        """
        device = torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")
        if precision == "auto":
            precision = "bfloat16" if device.type == "cuda" else "float32"
        return cls(device, precision)

    def place(self, model: M) -> M:
        """Move a model's tensors here, in place."""
        model.to(self.torch)
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.torch.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def hardware(self) -> Hardware:
        return Hardware(
            cpu=cpu_name(),
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if self.torch.type == "cuda" else "cpu",
            precision=self.precision,
            torch=str(torch.__version__),  # with its build: the package's own version is 2.13.0 for 2.13.0+cu130 too
            transformers=installed("transformers"),
            onnxruntime=installed("onnxruntime"),
        )


def seed_everything(seed: int) -> None:
    """Python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every generator's state, as tensors and as JSON."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors["rng.numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return tensors, {"numpy": [kind, position, has_gauss, gauss], "python": random.getstate()}


def restore_random_state(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    kind, *rest = facts["numpy"]
    np.random.set_state((kind, tensors["rng.numpy"].numpy().astype(np.uint32), *rest))
    version_, keys, gauss = facts["python"]
    random.setstate((version_, tuple(keys), gauss))
