"""Trying again while a storage or a database is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from limbeck.errors import Unavailable

_log = logging.getLogger(__name__)
T = TypeVar("T")
_PAUSE_SECONDS = 0.5


class Patience:
    """Does pieces of work, each again and again while what it needs is away.

    Args:
        seconds: how long to try one piece.
        check: called before each try; raises where nobody wants it any more.
    """

    def __init__(self, seconds: float, check: Callable[[], None]) -> None:
        self._seconds = seconds
        self.check = check

    def __call__(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, which can be begun again wherever it breaks off.

        Raises:
            Unavailable: it stayed away for too long.
        """
        end = time.monotonic() + self._seconds
        while True:
            self.check()
            try:
                return work()
            except Unavailable as error:
                if time.monotonic() >= end:
                    raise
                _log.warning("trying again: %s", error)
            time.sleep(_PAUSE_SECONDS)
