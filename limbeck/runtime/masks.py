"""Masked tokens that are found, in the shape of transformers' ``FillMaskPipeline``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InvalidInput, Problem
from limbeck.runtime.encoding import Row
from limbeck.runtime.inputs import Question, TopK, refuse_top_k

#: Tokens that are named for each mask where nothing is said.
TOP_K = 5
#: That may be asked for, of a mask and of a text: each comes with the whole text that it makes.
MOST_OF_A_MASK, MOST_OF_A_TEXT = 100, 1000


def require_few(top_k: TopK) -> None:
    """
    Raises:
        InvalidInput: at ``/parameters/top_k``, for more tokens than are named for a mask.
    """
    if top_k == "all" or (isinstance(top_k, int) and top_k > MOST_OF_A_MASK):
        refuse_top_k(
            f"found {top_k!r}; a student that finds masked tokens could name its whole vocabulary: say how many "
            f"tokens, at most {MOST_OF_A_MASK}"
        )


def require_masks(rows: Sequence[Row], question: Question, mask: str, mask_id: int) -> None:
    """
    Raises:
        InvalidInput: a text without a mask among the tokens that are read, or with so many that the answer would be
            too large; the place is named.
    """
    each = question.top_k if isinstance(question.top_k, int) else TOP_K
    problems = []
    for place, row in enumerate(rows):
        pointer = f"/inputs/{place}" if question.form == "list" else "/inputs"
        masks = row.ids.count(mask_id)
        if not masks:
            detail = f"found no {mask} among the {len(row)} tokens that are read of the text; write it where a token is"
            problems.append(Problem(pointer, f"{detail} to be found"))
        elif masks * each > MOST_OF_A_TEXT:
            detail = f"found {masks} × {mask}, and {each} tokens asked for at each; allowed: {MOST_OF_A_TEXT} in a text"
            problems.append(Problem(pointer, detail))
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
