"""The start of a student that is narrower than its teacher: the teacher's weights, projected.

Hidden states live in a space that every layer adds to. Its main directions (a principal-component analysis of what the
word table and the layers write into it) become the student's; every weight that reads or writes hidden states is
projected onto them, as in SliceGPT (Ashkboos et al. 2024, arXiv:2401.15024), there by states, here by weights alone.
The direction in which all elements are equal stays that direction, as layer norms take it out. A norm's gain cannot be
rotated; its mean over each new direction takes its place, so that the start is close, and exact for uniform gains and
states that lie in the kept directions.

Within a layer, heads and neurons are chosen whole, the largest by norm (or those that pruning names). Where heads have
to become narrower, the products that they compute (queries with keys, values with the mixing layer) are replaced by
their best approximations of lower rank, the singular value decomposition. What has no counterpart in the teacher starts
at random, and contributes nothing at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.families import Family, family_of
from limbeck.students import word_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MIXED = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class Basis:
    """Directions that are kept of a space, as orthonormal columns."""

    columns: Tensor  # (teacher's width, student's width)
    kept: float  #: share of the energy that lies in them

    @classmethod
    def of(cls, writers: Sequence[Tensor], width: int) -> Basis:
        """The ``width`` main directions of what is written.

        Args:
            writers: each (vectors, teacher's width); all count alike.
        """
        full = writers[0].shape[1]
        grams = []
        for written in writers:
            centred = written.double() - written.double().mean(dim=1, keepdim=True)
            gram = centred.T @ centred
            grams.append(gram / gram.trace().clamp_min(torch.finfo(torch.float64).tiny))
        values, vectors = torch.linalg.eigh(torch.stack(grams).mean(dim=0))  # rising
        main = vectors.flip(1)[:, : width - 1]
        # A vector and its negative serve alike; which one comes out is up to the machine.
        main = main * torch.where(main.gather(0, main.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)
        even = torch.full((full, 1), 1 / math.sqrt(full), dtype=torch.float64)
        columns = torch.cat([even, main], dim=1) @ _even_first(width)
        kept = float(values.flip(0)[: width - 1].sum() / values.sum().clamp_min(torch.finfo(torch.float64).tiny))
        return cls(columns.float(), min(1.0, kept))

    def gain(self, weight: Tensor) -> Tensor:
        """A norm's gain in the kept directions; a norm makes its output as long as it is wide."""
        full, width = self.columns.shape
        return (self.columns.square().T @ weight) * math.sqrt(self.kept * full / width)


def _even_first(width: int) -> Tensor:
    """The reflection that turns the first axis into the direction in which all elements are equal."""
    even = torch.full((width,), 1 / math.sqrt(width), dtype=torch.float64)
    normal = -even
    normal[0] += 1
    length = normal.norm()
    if length == 0:
        return torch.eye(width, dtype=torch.float64)
    normal /= length
    return torch.eye(width, dtype=torch.float64) - 2 * torch.outer(normal, normal)


@dataclass(frozen=True, slots=True)
class Bases:
    """How hidden states and embeddings are projected; ``None`` where they stay as wide as they are."""

    hidden: Basis | None
    embedding: Basis | None
    hidden_size: int  #: the teacher's
    embedding_size: int  #: the teacher's

    @classmethod
    def find(cls, encoder: PreTrainedModel, kept: Tensor, hidden: int, embedding: int) -> Bases:
        """
        Args:
            encoder: the teacher's folder, or its layers that stay.
            kept: ids of the rows of the word table that count, (tokens,).
            hidden, embedding: the student's widths.
        """
        family = family_of(encoder.config.model_type)
        words = word_table(encoder)[kept]
        own, table = int(encoder.config.hidden_size), words.shape[1]
        into = _mapping(encoder, own, table)
        states = words if into is None else words @ into.T
        whole = Basis.of([states, _written(encoder, family)], hidden) if hidden != own else None
        if table == own and embedding == hidden:
            return cls(whole, whole, own, table)
        return cls(whole, Basis.of([words], embedding) if embedding != table else None, own, table)

    def rows(self, table: Tensor) -> Tensor:
        """Rows of the teacher's word table as the student has them."""
        return table if self.embedding is None else table @ self.embedding.columns

    def between(self, size: int, wanted: int) -> Basis | None:
        """How an axis of hidden states or embeddings becomes one of ``wanted``; None where it stays."""
        for basis, own in ((self.hidden, self.hidden_size), (self.embedding, self.embedding_size)):
            if basis is not None and (size, wanted) == (own, basis.columns.shape[1]):
                return basis
        return None


def _mapping(encoder: PreTrainedModel, hidden: int, embedding: int) -> Tensor | None:
    """The layer from embeddings to hidden states, (hidden, embedding), where they differ in width."""
    if hidden == embedding:
        return None
    shapes = {name: one.weight for name, one in encoder.named_modules() if isinstance(one, nn.Linear)}
    return next(weight.detach() for weight in shapes.values() if weight.shape == (hidden, embedding))


def _written(encoder: PreTrainedModel, family: Family) -> Tensor:
    """All vectors that layers can add to hidden states, (vectors, hidden)."""
    found = encoder.get_submodule(family.layers)
    layers = [found] if family.shared else list(found.children())
    ends = [layer.get_submodule(name) for layer in layers for name in (family.mixing, family.neurons[1])]
    return torch.cat([end.weight.detach().T for end in ends])  # type: ignore[operator]


def narrow(
    wide: PreTrainedModel, student: PreTrainedModel, bases: Bases, neurons: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """The student's weights.

    Args:
        wide: the teacher's layers that the student starts from, as wide as they are.
        student: at its random start; what the teacher cannot give stays as it is there.
        bases: see there.
        neurons: those that stay, rising, for each layer; default: the largest ones.
    """
    family = family_of(wide.config.model_type)
    start = {name: value.detach().clone() for name, value in student.state_dict().items()}
    prefix = f"{wide.base_model_prefix}." if wide.base_model is not wide else ""
    count = 1 if family.shared else int(wide.config.num_hidden_layers)
    done: set[str] = set()
    for number in range(count):
        place = f"{prefix}{family.layers}" + ("" if family.shared else f".{number}")
        layer, target = wide.get_submodule(place), student.get_submodule(place)
        parts = _heads(layer, wide.config, student.config, family, bases, target)
        parts |= _neurons(layer, target, family, bases, None if neurons is None else neurons[number])
        start |= {f"{place}.{name}": value for name, value in parts.items()}
        done |= {f"{place}.{name}" for name in (*family.projections, family.mixing, *family.neurons)}
    for name, module in wide.named_modules():
        if name not in done:
            start |= _plain(name, module, bases, start)
    _new_mapping(student, wide, bases, start)
    return start


def _plain(name: str, module: nn.Module, bases: Bases, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module without an inner axis of its own, projected along its axes; what does not fit then is left out."""
    found: dict[str, Tensor] = {}
    for key, parameter in module.named_parameters(recurse=False):
        full, made = f"{name}.{key}", parameter.detach()
        if full not in start or start[full].dim() != made.dim():
            continue
        wanted = start[full].shape
        for axis in range(made.dim()):
            basis = bases.between(made.shape[axis], wanted[axis])
            if basis is not None and isinstance(module, nn.LayerNorm) and key == "weight":
                made = basis.gain(made)
            elif basis is not None:
                made = _project(made, basis, axis)
        if made.shape == wanted:
            found[full] = made.contiguous()
    return found


def _project(value: Tensor, basis: Basis | None, axis: int) -> Tensor:
    if basis is None:
        return value
    projected: Tensor = torch.tensordot(value.movedim(axis, -1), basis.columns, dims=1)
    return projected.movedim(-1, axis)


def _new_mapping(student: PreTrainedModel, wide: PreTrainedModel, bases: Bases, start: dict[str, Tensor]) -> None:
    """Where the student has a layer from embeddings to hidden states and the teacher needed none."""
    known = {name for name, _ in wide.named_parameters()}
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" not in known:
            back = torch.eye(bases.embedding_size) if bases.embedding is None else bases.embedding.columns
            start[f"{name}.weight"] = _project(back, bases.hidden, 0).contiguous()
            if module.bias is not None:
                start[f"{name}.bias"] = torch.zeros_like(module.bias)


def _neurons(
    layer: nn.Module, target: nn.Module, family: Family, bases: Bases, chosen: Tensor | None
) -> dict[str, Tensor]:
    """The feed-forward part with the neurons that stay; surplus ones of the student's start at random, unheard."""
    first, last = (layer.get_submodule(name) for name in family.neurons)
    new_first, new_last = (target.get_submodule(name) for name in family.neurons)
    halves = 2 if family.gated else 1
    inward = _split(_project(_weight(first), bases.hidden, 1), 0, (halves, -1))  # (halves, neurons, hidden)
    outward = _project(_weight(last), bases.hidden, 0)  # (hidden, neurons)
    count = _weight(new_last).shape[1]
    if chosen is None:
        size = inward.norm(dim=(0, 2)) * outward.norm(dim=0)
        chosen = size.topk(min(count, len(size))).indices.sort().values
    made = _split(_weight(new_first).clone(), 0, (halves, -1))
    made[:, : len(chosen)] = inward[:, chosen]
    ending = torch.zeros_like(_weight(new_last))
    ending[:, : len(chosen)] = outward[:, chosen]
    found = {f"{family.neurons[0]}.weight": made.flatten(0, 1), f"{family.neurons[1]}.weight": ending}
    if getattr(first, "bias", None) is not None:
        bias = torch.zeros(halves, count)
        bias[:, : len(chosen)] = _split(_bias(first), 0, (halves, -1))[:, chosen]
        found[f"{family.neurons[0]}.bias"] = bias.flatten()
    if getattr(last, "bias", None) is not None:
        found[f"{family.neurons[1]}.bias"] = _project(_bias(last), bases.hidden, 0)
    return found


def _heads(
    layer: nn.Module, config: Any, small: Any, family: Family, bases: Bases, target: nn.Module
) -> dict[str, Tensor]:
    """The attention with the heads that stay, made narrower where they have to be."""
    heads, count = int(config.num_attention_heads), int(small.num_attention_heads)
    width = int(small.hidden_size) // count
    q, k, v = _projected(layer, family, bases, heads)  # (heads, head's width, hidden + 1): the bias comes last
    mixing = _project(_weight(layer.get_submodule(family.mixing)), bases.hidden, 0)
    o = _split(mixing, 1, (heads, -1)).movedim(1, 0)  # (heads, hidden, head's width)
    chosen = (v.flatten(1).norm(dim=1) * o.flatten(1).norm(dim=1)).topk(min(heads, count)).indices.sort().values
    new = _projected(target, family, None, count)
    queries, keys, values = (part.clone() for part in new)
    keys.zero_()
    mixed = torch.zeros(count, o.shape[1], width)
    scale = math.sqrt(width / q.shape[1])  # scores are divided by the square root of the head's width
    for place, head in enumerate(chosen.tolist()):
        pair = _rank(q[head].T, k[head], width)
        size = pair[0].shape[1]
        queries[place, :size], keys[place, :size] = pair[0].T * scale, pair[1]
        back, values[place, :size] = _rank(o[head], v[head], width)
        mixed[place, :, :size] = back
    parts = {name: part.flatten(0, 1) for name, part in zip(_MIXED, (queries, keys, values), strict=True)}
    found = {f"{family.mixing}.weight": mixed.movedim(0, 1).flatten(1)}
    last = layer.get_submodule(family.mixing)
    if getattr(last, "bias", None) is not None:
        found[f"{family.mixing}.bias"] = _project(_bias(last), bases.hidden, 0)
    return found | _named(parts, layer, family)


def _rank(left: Tensor, right: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """``left @ right`` in two factors of at most ``width``: as they are where they are no wider, else the best ones."""
    if left.shape[1] <= width:
        return left, right
    (first, upper), (last, lower) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    root = s[:width].sqrt()
    return first @ u[:, :width] * root, (last @ v[:width].T * root).T


def _projected(layer: nn.Module, family: Family, bases: Bases | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries', keys' and values' weights by head with their biases, (heads, head's width, hidden + 1)."""
    weights, biases = [], []
    for name in family.projections:
        module = layer.get_submodule(name)
        weight = _project(_weight(module), None if bases is None else bases.hidden, 1)
        has = getattr(module, "bias", None) is not None
        weights.append(weight)
        biases.append(_bias(module) if has else torch.zeros(len(weight)))
    whole = torch.cat([torch.cat(weights), torch.cat(biases)[:, None]], dim=1)
    q, k, v = _split(whole, 0, (3, heads, -1))
    return q, k, v


def _named(parts: Mapping[str, Tensor], layer: nn.Module, family: Family) -> dict[str, Tensor]:
    """Weights and biases under the names of the family's projections."""
    fused = len(family.projections) == 1
    whole = [torch.cat(list(parts.values()))] if fused else list(parts.values())
    found = {}
    for name, value in zip(family.projections, whole, strict=True):
        found[f"{name}.weight"] = value[:, :-1].contiguous()
        if getattr(layer.get_submodule(name), "bias", None) is not None:
            found[f"{name}.bias"] = value[:, -1].contiguous()
    return found


def _split(value: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """An axis as several; one of the sizes may be -1."""
    return value.reshape(*value.shape[:axis], *sizes, *value.shape[axis + 1 :])


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.detach()


def _bias(module: Any) -> Tensor:
    bias: Tensor = module.bias
    return bias.detach()
