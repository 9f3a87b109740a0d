"""How far two models' answers to the same examples are apart, and how sure that is."""

from __future__ import annotations

from typing import Any

import numpy as np

from limbeck.evaluate import Resamples


def paired_difference(metric: str, *, ours: Any, theirs: Any, truth: Any, seed: int = 0) -> dict[str, float]:
    """``ours - theirs`` in the metric, with its 95 % percentile interval by bootstrap over the examples.

    The arguments are predictions; both are judged on the same resamples.
    """
    drawn = Resamples(truth, {"ours": ours, "theirs": theirs}, seed=seed)
    each = drawn.values(metric, ("ours", "theirs"))
    low, high = np.quantile(each["ours"] - each["theirs"], (0.025, 0.975))
    value = drawn.value(metric, "ours") - drawn.value(metric, "theirs")
    return {"value": value, "low": float(low), "high": float(high)}
