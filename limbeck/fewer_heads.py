"""Encoders some of whose attention heads are gone: their rows in the projections, and their columns behind these.

In transformers a head is as wide as ``hidden_size / num_attention_heads`` says, so that a configuration with fewer
heads would mean wider ones. Here ``num_attention_heads`` stays, and ``kept_heads`` in ``config.json`` says how many are
left in each layer. transformers' attention takes the number of heads from what its projections give; only their shapes
differ.

This file imports nothing of Limbeck's, because a copy of it travels with a student as ``fewer_heads.py``: with torch
and transformers alone, ``load(folder)`` is the model. Plain ``from_pretrained`` refuses the folder for its shapes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: In ``config.json``: heads of each layer; missing where none is gone.
KEPT = "kept_heads"
LOADER = "fewer_heads.py"
#: What the families that this serves call the projections and the layer behind them, within an attention block.
_NAMES = (("self.query", "self.key", "self.value", "output.dense"), ("q_lin", "k_lin", "v_lin", "out_lin"))


def kept_heads(config: Any) -> int | None:
    """How many heads each layer has, where some are gone."""
    found: int | None = getattr(config, KEPT, None)
    return found


def attention_width(config: Any) -> int:
    """How many numbers the queries (or keys, or values) of all heads of a layer are together."""
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    return hidden // heads * (kept_heads(config) or heads)


def remove(model: PreTrainedModel, kept: Sequence[Tensor]) -> None:
    """Leave these heads in each layer, as many everywhere; all others go for good.

    Args:
        kept: for each layer the places of its heads, rising.

    Raises:
        ValueError: their numbers differ, or the model's attention is not known.
    """
    if len({len(heads) for heads in kept}) != 1:
        raise ValueError(f"every layer keeps as many heads; found {[len(heads) for heads in kept]}")
    size = int(model.config.hidden_size) // int(model.config.num_attention_heads)
    for block, heads in zip(_attentions(model), kept, strict=True):
        places = (heads[:, None] * size + torch.arange(size)).flatten()
        _replace(model, block, places)
    setattr(model.config, KEPT, len(kept[0]))


def shrink(model: PreTrainedModel) -> None:
    """Give a model the shapes that its configuration asks for; what its smaller layers hold is to be loaded over."""
    count = kept_heads(model.config)
    if count is not None:
        first = torch.arange(count)
        remove(model, [first] * int(model.config.num_hidden_layers))


def _attentions(model: PreTrainedModel) -> Iterator[tuple[str, ...]]:
    """The names of the three projections and of the layer behind them, of each layer in order."""
    modules = dict(model.named_modules())
    found = 0
    for name in modules:
        for parts in _NAMES:
            whole = tuple(f"{name}.{part}" for part in parts)
            if all(part in modules for part in whole):
                found += 1
                yield whole
    if found != int(model.config.num_hidden_layers):
        raise ValueError(f"the attention of a {model.config.model_type} is not known here")


def _replace(model: PreTrainedModel, block: tuple[str, ...], places: Tensor) -> None:
    *projections, behind = block
    for name in projections:
        old: Any = model.get_submodule(name)
        model.set_submodule(name, _linear(old, old.weight[places], old.bias[places]))
    old = model.get_submodule(behind)
    model.set_submodule(behind, _linear(old, old.weight[:, places], old.bias))


def _linear(old: Any, weight: Tensor, bias: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    # On "meta" no random start is drawn, which would move torch's generator.
    made = nn.Linear(inputs, outputs, device="meta", dtype=weight.dtype)
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=old.weight.requires_grad)
    made.bias = nn.Parameter(bias.detach().clone(), requires_grad=old.bias.requires_grad)
    made.train(old.training)
    return made


def save_loader(folder: Path) -> None:
    """Put this file beside a model's weights."""
    shutil.copyfile(__file__, folder / LOADER)


def load(folder: str | Path, model_class: Any = None) -> PreTrainedModel:
    """The model of a folder, in ``eval()``.

    Args:
        model_class: has ``from_config``; default: the class of transformers that ``config.json`` names.

    Raises:
        ValueError: the weights are not those of the configuration.
    """
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if model_class is None:
        named: Any = getattr(transformers, config.architectures[0])
        model: PreTrainedModel = named(config)
    else:
        model = model_class.from_config(config)
    shrink(model)
    missing, unexpected = model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
    model.tie_weights()
    missing = [name for name in missing if name not in set(model._tied_weights_keys or ())]
    if missing or unexpected:
        raise ValueError(f"{folder} does not hold the weights of its configuration: {[*missing, *unexpected]}")
    model.train(False)
    return model
