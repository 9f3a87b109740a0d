"""Taking layers out of an encoder: the weights that stay under their new numbers, and what the configuration says."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.families import family_of
from limbeck.stages import cut_stage_weights, cut_stages

if TYPE_CHECKING:
    from torch import Tensor


def cut_config(config: Any, layers: Sequence[int]) -> Any:
    """The configuration of an encoder of these of its layers (from 0); each keeps its own kind of attention."""
    family = family_of(config.model_type)
    if family.stages:
        return cut_stages(config, layers)
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = len(layers)
    if family.windowed:
        cut.layer_types = [config.layer_types[number] for number in layers]
    return cut


def cut_weights(config: Any, weights: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights of :func:`cut_config`'s encoder: all that belongs to no layer, and these layers."""
    family = family_of(config.model_type)
    if family.shared:
        return dict(weights)
    if family.stages:
        return cut_stage_weights(config.depths, weights, layers)
    inside = re.compile(rf"((?:.*\.)?{re.escape(family.layers)}\.)(\d+)(\..*)")
    cut = {}
    for name, value in weights.items():
        found = inside.fullmatch(name)
        if found is None:
            cut[name] = value
        elif (number := int(found[2])) in layers:
            cut[f"{found[1]}{list(layers).index(number)}{found[3]}"] = value
    if config.model_type == "modernbert" and layers[0] != 0:
        _absorb_first_norm(cut)
    return cut


def _absorb_first_norm(weights: dict[str, Tensor]) -> None:
    """ModernBERT norms the embeddings and leaves out the norm before its first attention; any other layer has one.

    Where such a layer comes first, its norm meets states that are normed already: all that it still does is to undo the
    embeddings' gain, about, and to apply its own. Both go into the projection, exactly where that gain is uniform.
    """
    names = {name.rpartition("layers.0.")[2]: name for name in weights if "layers.0." in name}
    norm = weights.pop(names["attn_norm.weight"])
    bias = weights.pop(names["attn_norm.bias"], None) if "attn_norm.bias" in names else None
    gain = next(value for name, value in weights.items() if name.endswith("embeddings.norm.weight"))
    projection = weights[names["attn.Wqkv.weight"]]  # (3 hidden, hidden)
    if bias is not None and "attn.Wqkv.bias" in names:
        weights[names["attn.Wqkv.bias"]] = weights[names["attn.Wqkv.bias"]] + projection @ bias
    weights[names["attn.Wqkv.weight"]] = projection * (norm / gain.square().mean().sqrt())
