"""What goes on inside an encoder while it answers: hidden states, and queries, keys and values of its layers.

transformers 5 gives no attention scores (SDPA never has them in memory), so that whoever wants to match attention takes
the projections that it is made of. The hooks are there for one forward pass alone: a model that is saved, exported or
validated carries none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from limbeck.families import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Projections = tuple["Tensor", "Tensor", "Tensor"]
"""Queries, keys and values, each (examples, tokens, width), the heads side by side."""


class Captured:
    """What one forward pass left; see :func:`captured`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._family = family_of(model.config.model_type)
        place: Any = model.base_model.get_submodule(self._family.layers)
        #: Where all layers are one, that one, which is called once for each.
        self._layers: list[nn.Module] = [place] if self._family.shared else list(place)
        self._read: list[Tensor] = []
        self._gave: list[Tensor] = []  # by the last layer, or by the only one each time
        self._parts: dict[tuple[int, str], list[Tensor]] = {}

    def hidden(self, place: int) -> Tensor:
        """(examples, tokens, width): 0 is what the first layer reads, i what the i-th layer gives."""
        # What the next layer reads, not what the layer before gave: DeBERTa-v2 has a convolution between two of them.
        return self._read[place] if place < len(self._read) else self._gave[-1]

    def first_token(self, places: Sequence[int]) -> Tensor:
        """(examples, places, width): what :meth:`hidden` has of the first token at each of these places."""
        import torch

        return torch.stack([self.hidden(place)[:, 0] for place in places], dim=1)

    def projections(self, layer: int) -> Projections:
        """Of a layer, counted from 0."""
        # A layer may call them more than once (DeBERTa does, for its positions): the hidden states come first.
        module, call = (0, layer) if self._family.shared else (layer, 0)
        parts = [self._parts[module, name][call] for name in self._family.projections]
        if len(parts) == 1:
            queries, keys, values = parts[0].chunk(3, dim=-1)
            return queries, keys, values
        queries, keys, values = parts
        return queries, keys, values

    def watch(self, hooks: ExitStack, projections: bool) -> None:
        """Hang the hooks into the model until ``hooks`` is closed."""

        def read(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._read.append(inputs[0] if inputs else named["hidden_states"])

        def gave(output: Any) -> None:
            self._gave.append(output[0] if isinstance(output, tuple) else output)

        hooks.callback(self._layers[-1].register_forward_hook(_hook(gave)).remove)
        for number, layer in enumerate(self._layers):
            hooks.callback(layer.register_forward_pre_hook(read, with_kwargs=True).remove)
            for name in self._family.projections if projections else ():
                kept = self._parts.setdefault((number, name), [])
                hooks.callback(layer.get_submodule(name).register_forward_hook(_hook(kept.append)).remove)


@contextmanager
def captured(model: PreTrainedModel, *, projections: bool = False) -> Iterator[Captured]:
    """Keep the hidden states, and with ``projections`` queries, keys and values, of the one forward pass in the block.

    Raises:
        InvalidModel: the model is of a family whose layers are not known.
    """
    found = Captured(model)
    with ExitStack() as hooks:
        found.watch(hooks, projections)
        yield found


def _hook(keep: Callable[[Any], None]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        keep(output)

    return hook
