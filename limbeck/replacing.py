"""A teacher in which groups of layers give way to a student's layers (``limbeck/methods/theseus.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from limbeck.errors import InvalidConfig, InvalidModel, Problem
from limbeck.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Keeps these draws apart from others that are made of the same seed and a small number.
_STREAM = 2002


def draw(share: float, groups: int, *, seed: int, step: int) -> list[bool]:
    """Which groups are replaced at a step, each with the probability ``share``.

    A function of seed and step alone: every part of a batch under gradient accumulation, every rank and a resumed run
    draw the same. Torch's own generator is not touched.
    """
    return [bool(number < share) for number in np.random.default_rng([seed, step, _STREAM]).random(groups)]


class Hybrid:
    """The frozen predecessor, whose list of layers takes successors in.

    The successors are the student's own modules, not copies. Everything around the layers is the predecessor's, which
    the student has inherited.
    """

    def __init__(self, student: PreTrainedModel, predecessor: PreTrainedModel) -> None:
        """
        Raises:
            InvalidConfig: the student's layers do not fit among the predecessor's, naming the field.
            InvalidModel: the predecessor has no layers of its own for each place.
        """
        _require_like(student, predecessor)
        self._network = predecessor.requires_grad_(False)
        self._place, self._name = _list_of_layers(predecessor)
        self.successors = list(getattr(*_list_of_layers(student)))
        layers = list(getattr(self._place, self._name))
        size = _group_size(len(layers), len(self.successors))
        self._groups = nn.ModuleList(nn.ModuleList(layers[i : i + size]) for i in range(0, len(layers), size))

    def train(self, mode: bool = True) -> None:
        """Switch dropout on (or off) in predecessor and successors alike."""
        self._network.train(mode)
        self._groups.train(mode)
        for successor in self.successors:
            successor.train(mode)

    def drawn(self, share: float, *, seed: int, step: int) -> PreTrainedModel:
        """The network in which each group is replaced whole with the probability ``share``."""
        chosen: list[nn.Module] = []
        replaced = draw(share, len(self.successors), seed=seed, step=step)
        for successor, group, by_successor in zip(self.successors, self._groups, replaced, strict=True):
            chosen += [successor] if by_successor else list(group.children())
        return self._with(chosen)

    def blended(self, share: float) -> PreTrainedModel:
        """The network in which each group's hidden states are ``share`` · successor's + ``(1 - share)`` · its own.

        Raises:
            InvalidConfig: the layers of a group do not all see the same, so that none can stand for it.
        """
        kinds = set(getattr(self._network.config, "layer_types", None) or ())
        if len(kinds) > 1:
            detail = f"found 'additive'; this teacher's layers differ in what they see ({', '.join(sorted(kinds))})"
            raise _refusal("/method/replacing", f"{detail}; allowed: linear, constant")
        pairs = zip(self.successors, self._groups, strict=True)
        return self._with([Blend(successor, list(group.children()), share) for successor, group in pairs])

    def _with(self, layers: list[nn.Module]) -> PreTrainedModel:
        setattr(self._place, self._name, nn.ModuleList(layers))
        return self._network


class Blend(nn.Module):
    """Stands in the list of layers for a group: both ways at once, and the weighted mean of where they lead."""

    def __init__(self, successor: nn.Module, group: list[nn.Module], share: float) -> None:
        super().__init__()
        self.successor, self.group, self.share = successor, nn.ModuleList(group), share

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        new = self.successor(hidden_states, *args, **kwargs)
        old: Any = hidden_states
        for layer in self.group:
            old = layer(_states(old), *args, **kwargs)
        mean = self.share * _states(new) + (1 - self.share) * _states(old)
        return (mean, *new[1:]) if isinstance(new, tuple) else mean


def _states(output: Any) -> Tensor:
    """The hidden states in what a layer returns: a tensor, or a tuple that starts with it, by family."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _list_of_layers(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """Where a model's layers are: a module, and the attribute of it."""
    path, _, name = family_of(model.config.model_type).layers.rpartition(".")
    base: nn.Module = model.base_model
    return base.get_submodule(path), name


def _require_like(student: PreTrainedModel, predecessor: PreTrainedModel) -> None:
    if type(student) is not type(predecessor):
        detail = f"found a {type(student).__name__}; its layers go among the teacher's, a {type(predecessor).__name__}"
        raise _refusal("/student", detail)
    found, wanted = student.config.hidden_size, predecessor.config.hidden_size
    if found != wanted:
        detail = f"found {found}; the student's layers go among the teacher's, which are {wanted} wide"
        raise _refusal("/student/hidden_size", detail)
    if family_of(predecessor.config.model_type).shared:
        raise InvalidModel(
            f"The teacher's layers ({predecessor.config.model_type}) are one and the same, so that none of them can be "
            "replaced: theseus does not serve it."
        )


def _group_size(layers: int, successors: int) -> int:
    if layers % successors:
        raise _refusal("/student/layers", f"found {successors}, which does not divide the teacher's {layers}")
    return layers // successors


def _refusal(pointer: str, detail: str) -> InvalidConfig:
    return InvalidConfig(f"{pointer}: {detail}", [Problem(pointer, detail)])
