"""Texts with some tokens hidden, and a model's answers at those places alone.

BERT's rule (Devlin et al. 2019, arXiv:1810.04805): 15 % of a text's tokens are to be found, and one at least; of those
80 % are masked, 10 % are some other token and 10 % stay as they are. The other tokens are those that the split itself
uses, so that a trimmed vocabulary has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.batches import Encoded, encode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from limbeck.data import Split

HIDDEN, MASKED, OTHER = 0.15, 0.8, 0.1
#: Seeds the draws of splits as they are stored: whatever a job's own seed, its models are judged on the same tokens.
_FIXED = 20_181_011


def encode_hidden(tokenizer: Any, split: Split, max_length: int, poll: Callable[[], None]) -> Encoded:
    """A split with tokens hidden by a fixed draw.

    ``labels`` are the hidden tokens, -100 elsewhere; ``places`` has the mask's id where a token may be hidden, else -1.
    """
    whole = encode(tokenizer, replace(split, pairs=None), max_length, poll, labels=np.zeros(len(split), np.int64))
    words = ~np.isin(whole.ids, np.asarray(tokenizer.all_special_ids))
    for start, end in zip(whole.starts[:-1], whole.starts[1:], strict=True):
        if not words[start:end].any():
            # Nothing but tokens that this tokenizer does not know: one is found, so that every batch has a label.
            words[min(start + 1, end - 1)] = True
    places = np.where(words, tokenizer.mask_token_id, -1).astype(np.int32)
    plain = replace(whole, labels=np.full(len(whole.ids), -100, np.int64), per_token=True, places=places, cloze=True)
    return hide(plain, [_FIXED])


def shown(data: Encoded) -> NDArray[np.int32]:
    """The tokens with none of them hidden, (tokens,)."""
    return np.where(data.labels == -100, data.ids, data.labels).astype(np.int32)


def hide(data: Encoded, seed: Sequence[int]) -> Encoded:
    """The same texts with other tokens hidden, drawn by ``seed``."""
    assert data.places is not None
    draw = np.random.default_rng(list(seed))
    ids, may = shown(data), data.places >= 0
    chance = np.where(may, draw.random(len(ids)), 2.0)
    least = np.repeat(np.minimum.reduceat(chance, data.starts[:-1]), data.lengths)
    hidden = (chance < HIDDEN) | (may & (chance == least))
    kind, others = draw.random(len(ids)), np.unique(ids[may])
    other = others[draw.integers(len(others), size=len(ids))]
    instead = np.where(kind < MASKED, data.places, np.where(kind < MASKED + OTHER, other, ids))
    return replace(
        data,
        ids=np.where(hidden, instead, ids).astype(np.int32),
        labels=np.where(hidden, ids, -100).astype(np.int64),
    )


@contextmanager
def answering(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """In the block the model's head reads the states at ``places`` alone, (examples, tokens) of bool, and so gives
    logits of (1, places, vocabulary).

    A head has as many outputs as there are tokens in the vocabulary: over every token of a batch it would cost more
    than the layers, and its logits more memory than all else.
    """

    def choose(module: Any, inputs: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0][places].unsqueeze(0)
        return output

    hook = model.base_model.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()
