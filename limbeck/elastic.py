"""A network that runs at several sizes: some of its layers, and of each layer's heads and neurons the first, most
important ones.

All sizes share one set of weights. :meth:`Elastic.run` computes a sub-network, and its gradients reach the whole;
:meth:`Elastic.lend` and :meth:`Elastic.cut` give models of plain transformers whose weights are parts of these in
memory: whatever the network learns, they know (``limbeck/methods/dynabert.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck import fewer_heads
from limbeck.capture import Captured, captured
from limbeck.cutting import cut_config
from limbeck.exact import make_exact_as
from limbeck.families import family_of
from limbeck.matching import hidden_distance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.pruning import Part


class Size(NamedTuple):
    """Of a sub-network."""

    layers: tuple[int, ...]  #: those of the whole network that it has, from 0, rising
    neurons: int  #: in the feed-forward part of each
    heads: int  #: in the attention of each

    def __str__(self) -> str:
        return f"layers_{len(self.layers)}_heads_{self.heads}_neurons_{self.neurons}"


class Inner(NamedTuple):
    """What a layer has many of, side by side, between the linear layers that write and the one that reads them."""

    writers: tuple[str, ...]  #: each has rows of it
    reader: str  #: has columns of it
    together: int  #: numbers that one neuron, or one head, gives


def sizes(
    whole: Size, own: Size, widths: Sequence[float], depths: Sequence[float] | None, *, heads: bool
) -> list[Size]:
    """The sub-networks of these shares of the neurons, heads and layers, the largest first.

    Args:
        whole: the whole network.
        own: the one that is wanted in the end: its width is always among the others', and so are its layers, in place
            of others that are as many.
        depths: None: every sub-network has all layers.
        heads: whether a width is a share of the heads as well; else all of them stay.
    """
    inner = {(_share(width, whole.neurons), _share(width if heads else 1, whole.heads)) for width in widths}
    inner.add((own.neurons, own.heads))
    chosen = {len(whole.layers): whole.layers}
    if depths is not None:
        counts = {_share(depth, len(whole.layers)) for depth in depths}
        chosen = {count: evenly(count, len(whole.layers)) for count in counts} | {len(own.layers): own.layers}
    rising = [Size(chosen[count], *width) for count in sorted(chosen) for width in sorted(inner)]
    return rising[::-1]


def _share(share: float, whole: int) -> int:
    return max(1, round(share * whole))


def evenly(count: int, whole: int) -> tuple[int, ...]:
    """``count`` of ``whole`` layers (from 0), the first among them, as the paper's authors drop them."""
    return tuple(place * whole // count for place in range(count))


def neurons_of(config: Any) -> int:
    """In each feed-forward part."""
    return int(getattr(config, "hidden_dim", None) or config.intermediate_size)


def heads_of(config: Any) -> int:
    """In the attention of each layer."""
    return fewer_heads.kept_heads(config) or int(config.num_attention_heads)


class Elastic:
    """
    Args:
        network: of a family whose layers are its own and whose neurons have no gates; changed in place.
        importance: how much each neuron and each head matters, (layers, neurons) and (layers, heads): the network's are
            sorted by it, the most important one first, equal ones by their place. What the network answers stays the
            same.
    """

    def __init__(self, network: PreTrainedModel, importance: Mapping[Part, Tensor] | None = None) -> None:
        self.network = network
        self.family = family_of(network.config.model_type)
        path, _, self._list = self.family.layers.rpartition(".")
        self._owner: Any = network.base_model.get_submodule(path)
        self._layers: nn.ModuleList = getattr(self._owner, self._list)
        within = f"{network.base_model_prefix}." if network.base_model is not network else ""
        self._prefix = f"{within}{self.family.layers}."
        #: What differs between sub-networks beside their layers; the heads only where single ones can go.
        self.inner: dict[Part, Inner] = {"neurons": Inner(self.family.neurons[:1], self.family.neurons[1], 1)}
        if self.family.loses_heads:
            size = int(network.config.hidden_size) // int(network.config.num_attention_heads)
            self.inner["heads"] = Inner(self.family.projections, self.family.mixing, size)
        for part, values in (importance or {}).items():
            self._sort(self.inner[part], values)

    @property
    def whole(self) -> Size:
        """All of it."""
        config = self.network.config
        return Size(tuple(range(len(self._layers))), neurons_of(config), heads_of(config))

    @torch.no_grad()
    def _sort(self, inner: Inner, importance: Tensor) -> None:
        for layer, values in zip(self._layers, importance, strict=True):
            back = layer.get_parameter(f"{inner.reader}.weight")
            order = torch.sort(values, descending=True, stable=True).indices
            places = (order[:, None] * inner.together + torch.arange(inner.together)).flatten().to(back.device)
            for name in inner.writers:
                for parameter in layer.get_submodule(name).parameters():
                    parameter.copy_(parameter[places])
            back.copy_(back[:, places])

    def run(self, inputs: Mapping[str, Tensor], size: Size) -> tuple[Any, Captured]:
        """What the sub-network answers, and its hidden states on the way."""
        with self._only(size.layers), captured(self.network) as seen:
            if size == self.whole._replace(layers=size.layers):
                return self.network(**inputs), seen
            return functional_call(self.network, self._narrow(size), (), dict(inputs)), seen

    @contextmanager
    def _only(self, layers: tuple[int, ...]) -> Iterator[None]:
        setattr(self._owner, self._list, nn.ModuleList(self._layers[number] for number in layers))
        try:
            yield
        finally:
            setattr(self._owner, self._list, self._layers)

    def _narrow(self, size: Size) -> dict[str, Tensor]:
        """The weights that the sub-network has parts of, under the names that they have while only its layers are
        in."""
        found: dict[str, Tensor] = {}
        for place, number in enumerate(size.layers):
            layer, prefix = self._layers[number], f"{self._prefix}{place}"
            for part, inner in self.inner.items():
                length = (size.neurons if part == "neurons" else size.heads) * inner.together
                for name in inner.writers:
                    for key, parameter in layer.get_submodule(name).named_parameters():
                        found[f"{prefix}.{name}.{key}"] = parameter[:length]
                found[f"{prefix}.{inner.reader}.weight"] = layer.get_parameter(f"{inner.reader}.weight")[:, :length]
        return found

    def trainable(self, importance: Mapping[Part, Tensor]) -> Elastic:
        """A copy to be trained, its neurons and heads sorted by ``importance``."""
        return Elastic(copy.deepcopy(self.network).requires_grad_(True), importance)

    def frozen(self) -> Elastic:
        """A copy that stays as this one is now, without dropout."""
        network = copy.deepcopy(self.network)
        network.train(False).requires_grad_(False)
        return Elastic(network)

    def lend(self, model: PreTrainedModel, layers: tuple[int, ...]) -> None:
        """Make ``model``, of the same build but with these ``layers`` alone and perhaps fewer neurons and heads, a
        sub-network.

        What it has whole becomes the network's own parameter, what it has of a part looks at that part: an optimizer's
        step shows in it, and weights that are loaded into it are the network's.
        """
        own = dict(self.network.named_parameters())
        for name, parameter in list(model.named_parameters()):
            whole = own[self._name_of(name, layers)]
            place, _, key = name.rpartition(".")
            if parameter.shape == whole.shape:
                setattr(model.get_submodule(place), key, whole)
            else:
                part = whole.detach()[tuple(slice(length) for length in parameter.shape)]
                setattr(model.get_submodule(place), key, nn.Parameter(part, requires_grad=False))

    def _name_of(self, name: str, layers: tuple[int, ...]) -> str:
        if not name.startswith(self._prefix):
            return name
        place, _, rest = name.removeprefix(self._prefix).partition(".")
        return f"{self._prefix}{layers[int(place)]}.{rest}"

    def cut(self, size: Size) -> PreTrainedModel:
        """A sub-network as a model of its own, in ``eval()``, with the network's weights as they are and will be."""
        config = cut_config(self.network.config, size.layers)
        setattr(config, "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size", size.neurons)
        if size.heads < self.whole.heads:
            setattr(config, fewer_heads.KEPT, size.heads)
        with torch.random.fork_rng(devices=[]):  # its random start is drawn from nobody's generator
            model: PreTrainedModel = type(self.network)(config)
        fewer_heads.shrink(model)
        model.to(self.network.device)  # type: ignore[arg-type]
        make_exact_as(model, self.network)
        self.lend(model, size.layers)
        model.train(False)
        return model


def distance(ours: Captured, theirs: Captured, size: Size, whole: Size, mask: Tensor) -> Tensor:
    """The squared error of a sub-network's hidden states, summed over embeddings and layers.

    What a layer reads is held against what the same layer reads in the whole network: the layer before it does the work
    of those that are left out in between.
    """
    places = (0, *size.layers[1:], len(whole.layers))
    found = [hidden_distance(ours.hidden(own), theirs.hidden(place), mask) for own, place in enumerate(places)]
    return torch.stack(found).sum()


def release(model: PreTrainedModel) -> None:
    """Give a model that was lent its weights a copy of its own."""
    for name, parameter in list(model.named_parameters()):
        place, _, key = name.rpartition(".")
        own = parameter.detach().clone(memory_format=torch.contiguous_format)
        setattr(model.get_submodule(place), key, nn.Parameter(own))
