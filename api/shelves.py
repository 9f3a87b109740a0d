"""Where a student's name becomes its id and its files."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from api.inference.files import FileFacts
from limbeck.errors import NotFound, Unavailable
from models.db import Database
from models.repository import catalogue
from models.repository.catalogue import StoredFile

Found = tuple[str, Sequence[FileFacts]]
"""A student's id, and its files as :meth:`api.inference.Students.get` takes them."""

#: Names that are remembered for when the database is away.
_REMEMBERED = 1000
#: For so long a database that is away is not asked for a name that is remembered: that it is away may take seconds to
#: be seen, and each request would wait for it.
_AWAY_SECONDS = 5.0


class Shelf(Protocol):
    """A place that has students under names; safe for threads."""

    def find(self, name: str) -> Found:
        """
        Raises:
            NotFound: it has none of this name.
            Unavailable: it cannot be asked.
        """

    def ping(self) -> None:
        """Return if it can be asked, else raise Unavailable."""


class DatabaseShelf:
    """Students by id and alias as the database has them.

    While the database is away, names that were found before mean what they meant: a student that is loaded, or whose
    files are at hand, goes on answering.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._before: OrderedDict[str, Found] = OrderedDict()
        self._away_until = 0.0

    def find(self, name: str) -> Found:
        with self._lock:
            before = self._before.get(name)
            if before is not None and self._clock() < self._away_until:
                return before
        try:
            found = self._ask(name)
        except NotFound:
            with self._lock:
                self._before.pop(name, None)
            raise
        except Unavailable:
            with self._lock:
                self._away_until = self._clock() + _AWAY_SECONDS
            if before is None:
                raise
            return before
        with self._lock:
            self._before[name] = found
            self._before.move_to_end(name)
            if len(self._before) > _REMEMBERED:
                self._before.popitem(last=False)
        return found

    def ping(self) -> None:
        self._database.ping()

    def _ask(self, name: str) -> Found:
        with self._database.reading() as session:
            model_id = catalogue.get_model(session, name).id
            rows = catalogue.model_files(session, model_id)
            return model_id, tuple(StoredFile(one.path, one.key, one.bytes, one.sha256) for one in rows)
