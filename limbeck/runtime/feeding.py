"""Rows of either kind, texts or images, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from limbeck.runtime.encoding import Feeds, Row, pad
from limbeck.runtime.images import Picture, stacked


def feeds_of(rows: Sequence[Row] | Sequence[Picture], pad_id: int) -> Feeds:
    """What a session takes: texts padded to their longest with ``pad_id``, images normalised."""
    if isinstance(rows[0], Picture):
        return stacked(cast("Sequence[Picture]", rows))
    return pad(cast("Sequence[Row]", rows), pad_id)
