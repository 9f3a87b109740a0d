"""What a training leaves in the run's store, so that a resumed one goes on as if nothing had happened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.device import random_state, restore_random_state
from limbeck.methods.base import Objective
from limbeck.phase import Phase, Position
from limbeck.run import Run

#: The tensors of an interrupted training, and its generators' states.
Saved = tuple[dict[str, Tensor], dict[str, Any]]


def stage(objective: Objective, optimizer: torch.optim.Optimizer, position: Position, phase: Phase, run: Run) -> None:
    """Put the whole training into the run's store: weights, optimizer, position, random state."""
    tensors, random = random_state()
    twins = _twins(objective.module)
    state = objective.module.state_dict()
    tensors |= {f"model.{name}": value for name, value in state.items() if name not in twins}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    facts = {"position": _as_json(position), "random": random}
    run.store.write_tensors(f"{phase.name}-training", tensors, facts)


def _twins(module: nn.Module) -> dict[str, str]:
    """Names of weights that are others under another name, as a masked-LM head's word table, and of those others."""
    first: dict[tuple[int, torch.Size], str] = {}
    state = {name: value for name, value in module.state_dict().items() if value.numel()}
    names = {name: first.setdefault((value.data_ptr(), value.shape), name) for name, value in state.items()}
    return {name: other for name, other in names.items() if name != other}


def _as_json(position: Position) -> dict[str, Any]:
    return {name: getattr(position, name) for name in Position.__dataclass_fields__}


def restore(phase: Phase, run: Run) -> tuple[Position, Saved | None]:
    """Where the training was interrupted, and what it left; its beginning, and None, where it was not."""
    role = f"{phase.name}-training"
    if not run.store.has(role):
        return Position(), None
    tensors, facts = run.store.read_tensors(role)
    known = facts["position"]
    # Earlier versions' have no ``weighed``, as their curriculum went by the steps of the part, and no ``scaled``.
    return Position(**{"weighed": known["step"], "scaled": False, **known}), (tensors, facts["random"])


def load(saved: Saved, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
    """Put what :func:`restore` found into the objective, the optimizer and the random generators."""
    tensors, random = saved
    inside = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    inside |= {name: inside[first] for name, first in _twins(objective.module).items()}
    objective.module.load_state_dict(inside)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, kind = name.split(".")
            state.setdefault(int(number), {})[kind] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    # Last: building the objective may have drawn.
    restore_random_state(tensors, random)
