"""Encoders that give a vector for each text beside their states, and stay what transformers calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class PooledEncoder:
    """Stands where other tasks have an ``AutoModelFor…`` class.

    A hook puts ``sentence_embedding`` into the output, so that the class, its weights and the folder that it is saved
    in are those of the plain ``AutoModel``.
    """

    pooling: str

    def from_config(self, config: PreTrainedConfig) -> PreTrainedModel:
        from transformers import AutoModel

        auto: Any = AutoModel
        return self._hooked(auto.from_config(config))

    def from_pretrained(self, *args: Any, **options: Any) -> Any:
        """The model; with ``output_loading_info`` that and transformers' report, as theirs."""
        from transformers import AutoModel

        found = AutoModel.from_pretrained(*args, **options)
        if isinstance(found, tuple):
            return self._hooked(found[0]), found[1]
        return self._hooked(found)

    def _hooked(self, model: PreTrainedModel) -> PreTrainedModel:
        pooling = self.pooling

        def pool(module: Any, inputs: Any, named: Mapping[str, Tensor], output: Any) -> Any:
            output["sentence_embedding"] = sentence_vectors(output.last_hidden_state, named["attention_mask"], pooling)
            return output

        model.register_forward_hook(pool, with_kwargs=True)
        return model


def sentence_vectors(
    states: Tensor,  # (texts, tokens, width)
    mask: Tensor,  # (texts, tokens): 1 at real tokens
    pooling: str = "mean",
) -> Tensor:
    """The mean of the states of real tokens, or the first one's, brought to length 1: (texts, width) in float32."""
    states = states.float()
    if pooling == "cls":
        return F.normalize(states[:, 0], dim=-1)
    weights = mask.to(states.dtype).unsqueeze(-1)
    return F.normalize((states * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)
