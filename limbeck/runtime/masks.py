"""Masked tokens that are found, in the shape of transformers' ``FillMaskPipeline``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InvalidInput, Problem
from limbeck.runtime.encoding import Row
from limbeck.runtime.inputs import Question

#: Tokens that are named for each mask where nothing is said.
TOP_K = 5


def require_masks(rows: Sequence[Row], question: Question, mask: str, mask_id: int) -> None:
    """
    Raises:
        InvalidInput: a text without a mask among the tokens that are read; the place is named.
    """
    problems = [
        Problem(
            f"/inputs/{place}" if question.form == "list" else "/inputs",
            f"found no {mask} among the {len(row)} tokens that are read of the text; write it where a token is to be "
            "found",
        )
        for place, row in enumerate(rows)
        if mask_id not in row.ids
    ]
    if problems:
        raise InvalidInput("; ".join(f"{one.pointer}: {one.detail}" for one in problems[:5]), problems)


def fillings(row: Row, logits: NDArray[np.float32], mask_id: int, top_k: int, tokenizer: Any) -> Any:
    """``[{"score", "token", "token_str", "sequence"}, …]``, best first; of several masks a list of these for each.

    Args:
        logits: (tokens, vocabulary) of the row's tokens.
    """
    masks = [place for place, token in enumerate(row.ids) if token == mask_id]
    found = [_ranked(row, place, logits[place], len(masks) == 1, top_k, tokenizer) for place in masks]
    return found[0] if len(found) == 1 else found


def _ranked(
    row: Row, place: int, logits: NDArray[np.float32], alone: bool, top_k: int, tokenizer: Any
) -> list[dict[str, Any]]:
    raised = np.exp(logits.astype(np.float64) - logits.max())
    scores = raised / raised.sum()
    best = np.argpartition(-scores, min(top_k, len(scores)) - 1)[:top_k]
    answers = []
    for token in best[np.argsort(-scores[best], kind="stable")].tolist():
        # With the masks that are left, where there are more than this one.
        ids = [*row.ids[:place], token, *row.ids[place + 1 :]]
        answers.append(
            {
                "score": float(scores[token]),
                "token": token,
                "token_str": tokenizer.decode([token], skip_special_tokens=False),
                "sequence": tokenizer.decode(ids, skip_special_tokens=alone),
            }
        )
    return answers
