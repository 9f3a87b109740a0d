"""Answering from the first token alone: a classification head reads no other of what the last layer gives.

So the last layer needs keys and values of all tokens, and all else (query, output, feed-forward: 10 of 12 parts of its
multiplications) of the first one. The others' states were thrown away, and no gradient came back through them: logits
and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from limbeck.families import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def answer(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Any:
    """``model(**inputs)`` for those who want its logits and nothing of its inside: the states of the last layer may be
    the first token's only. Models whose head or last layer is not known to allow that are called as they are."""
    with _last_layer_short(model):
        return model(**inputs)


@contextmanager
def _last_layer_short(model: PreTrainedModel) -> Iterator[None]:
    """For one forward pass: a model that is saved, exported or looked into is never changed."""
    layer = _last_layer(model)
    if layer is None or getattr(model.config, "_attn_implementation", None) != "sdpa":
        yield
        return
    projections = [layer.get_submodule(name) for name in family_of(model.config.model_type).projections]
    layer.forward = partial(_short, layer, projections, _PARTS[type(layer).__name__])
    try:
        yield
    finally:
        del layer.forward


def shorten_exported(model: PreTrainedModel) -> None:
    """The same for a model that ``limbeck/graph.py`` is about to export, in place.

    Its attention is one operator by now, which still answers all tokens: 9 of 12 parts are saved.
    """
    layer = _last_layer(model)
    if layer is not None:
        place, rest = _PARTS[type(layer).__name__]
        attention: Any = layer.get_submodule(place)
        attention.first_alone = True
        layer.forward = partial(_short_exported, layer, attention, rest)


def _last_layer(model: PreTrainedModel) -> Any:
    """The last layer, where the head reads its first token alone and it is transformers' own; else ``None``."""
    config = model.config
    if type(model).__name__ not in _HEADS or getattr(config, "is_decoder", False):
        return None
    layers: Any = model.base_model.get_submodule(family_of(config.model_type).layers)
    return layers[-1] if type(layers[-1]).__name__ in _PARTS else None


#: transformers' classes with such a head; an early exit's or a student's of another kind has another name.
_HEADS = frozenset(
    f"{family}ForSequenceClassification" for family in ("Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta")
)

_Rest = Callable[[Any, "Tensor", "Tensor"], "Tensor"]
"""From a layer, what its attention module gave and what it read, both (examples, 1, width), to what it gives."""


def _bert_rest(layer: Any, gathered: Tensor, read: Tensor) -> Tensor:
    found: Tensor = layer.feed_forward_chunk(layer.attention.output(gathered, read))
    return found


def _distilbert_rest(layer: Any, gathered: Tensor, read: Tensor) -> Tensor:
    attended = layer.sa_layer_norm(gathered + read)
    found: Tensor = layer.output_layer_norm(layer.ffn(attended) + attended)
    return found


#: By the layer's class: where its attention is, and what comes behind it.
_PARTS: dict[str, tuple[str, _Rest]] = {
    **{f"{family}Layer": ("attention.self", _bert_rest) for family in ("Bert", "Electra", "Roberta", "XLMRoberta")},
    "TransformerBlock": ("attention", _distilbert_rest),
}


def _short(
    layer: nn.Module,
    projections: list[nn.Module],
    parts: tuple[str, _Rest],
    hidden_states: Tensor,  # (examples, tokens, width)
    attention_mask: Tensor | None = None,  # (examples, 1, tokens or 1, tokens)
    *args: Any,
    **kwargs: Any,
) -> Tensor:  # (examples, 1, width)
    place, rest = parts
    attention: Any = layer.get_submodule(place)
    first = hidden_states[:, :1]

    def by_head(projection: nn.Module, states: Tensor) -> Tensor:  # (examples, heads, tokens, width of a head)
        found: Tensor = projection(states)
        return found.view(*states.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

    query, key, value = projections
    gathered = F.scaled_dot_product_attention(
        by_head(query, first),
        by_head(key, hidden_states),
        by_head(value, hidden_states),
        attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
        dropout_p=attention.dropout.p if layer.training else 0.0,
        scale=attention.scaling,
    )
    mixed = gathered.transpose(1, 2).flatten(2)
    project = getattr(attention, "out_lin", None)  # DistilBERT's module has the output projection in it
    return rest(layer, mixed if project is None else project(mixed), first)


def _short_exported(
    layer: nn.Module,
    attention: nn.Module,
    rest: _Rest,
    hidden_states: Tensor,  # (examples, tokens, width)
    attention_mask: Tensor,  # (examples, tokens)
    *args: Any,
    **kwargs: Any,
) -> Tensor:  # (examples, 1, width)
    gathered = attention(hidden_states, attention_mask)[0]
    return rest(layer, gathered, hidden_states[:, :1])
