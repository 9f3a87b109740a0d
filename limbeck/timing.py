"""How long a job's models are timed. Imports nothing to time them with, so that a worker can pass its setting on."""

from __future__ import annotations

import os

from limbeck.errors import InvalidInput

#: Of the environment; a worker has a setting of this name.
SECONDS_VARIABLE = "LIMBECK_LATENCY_SECONDS"


def timed_seconds() -> float:
    """About as long as each model of a job is timed at each batch size.

    Raises:
        InvalidInput: the environment says something else than a number above 0.
    """
    given = os.environ.get(SECONDS_VARIABLE, "1")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidInput(f"{SECONDS_VARIABLE}: found {given[:80]!r}; allowed: a number of seconds above 0")
    return seconds
