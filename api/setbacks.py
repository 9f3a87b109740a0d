"""What goes wrong, again and again, in a loop that has to go on."""

from __future__ import annotations

import structlog
from sqlalchemy.exc import SQLAlchemyError

from limbeck.errors import LimbeckError

log = structlog.get_logger("limbeck.api")
_LONGEST_PAUSE = 5.0


class Setbacks:
    """Told once for each kind until all is well again; the pauses between the tries grow.

    Args:
        what: cannot be done, for the log.
        pause: seconds between two tries while all is well.
    """

    def __init__(self, what: str, pause: float) -> None:
        self._what = what
        self._usual = self._pause = pause
        self._told: set[type[Exception]] = set()

    def met(self, error: Exception) -> float:
        """Tell of it, where nobody was told yet; seconds until the next try."""
        kind = type(error)
        if kind not in self._told:
            self._told.add(kind)
            # Of a database that is away all is said; anything else is a fault that somebody has to find.
            known = isinstance(error, SQLAlchemyError | LimbeckError)
            log.warning(self._what, error=str(error) or kind.__name__, exc_info=not known and error)
        pause = self._pause
        self._pause = max(self._usual, min(pause * 2, _LONGEST_PAUSE))
        return pause

    def over(self) -> float:
        """All is well again; seconds until the next look."""
        self._told.clear()
        self._pause = self._usual
        return self._usual
