"""Passes on what a trainer would like to have computed, and brings it what others have.

One thread for each attempt. It only saves time: whatever fails is logged, and the trainer computes everything itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from limbeck.errors import LeaseLost, LimbeckError
from limbeck.offer import Offer, OfferFolder, Part
from models.db import Database
from models.retention import PARTS
from models.storage import Storage
from worker import parts
from worker.lease import Lease

_log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
_LAST_SECONDS = 5.0


class Offers:
    """Makes the rows of ``teacher_parts`` what the trainer's offer says, and fetches parts as they come.

    Args:
        folder: where the trainer's offer lies.
        ring: says that there is something to do.
        pause: seconds between two looks.
    """

    def __init__(
        self,
        storage: Storage,
        database: Database,
        lease: Lease,
        folder: Path,
        ring: Callable[[], None],
        pause: float = LOOK_SECONDS,
    ) -> None:
        self._storage = storage
        self._database = database
        self._lease = lease
        self._place = OfferFolder(folder)
        self._ring = ring
        self._pause = pause
        self._offered: Offer | None = None  # as the rows have it
        self._fetched: set[Part] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"offers-{lease.job_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """The attempt is over. What has been handed in and not fetched stays for the next one."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        away = False
        while not self._stopping.wait(self._pause):
            try:
                self.look()
                away = False
            except LeaseLost:
                return
            except (LimbeckError, OSError) as error:
                if not away:
                    _log.warning("%s: its parts cannot be shared just now: %s", self._lease.job_id, error)
                away = True
            except Exception:  # the boundary: the job goes on without help
                _log.exception("%s: its parts are not shared any more", self._lease.job_id)
                return

    def look(self) -> None:
        """Pass on what has changed since the last time, both ways.

        Raises:
            LeaseLost, Unavailable, StorageFull, OSError
        """
        offer = self._place.read()
        if self._offered is not None and (offer is None or offer.key != self._offered.key):
            self._clear(self._offered)
        if offer is None or not self._pass_on(offer):
            return
        with self._database.reading() as session:
            held = parts.held(session, self._lease)
        self._place.say_held(held)
        self._fetch(offer)

    def _pass_on(self, offer: Offer) -> bool:
        """Bring the rows up to date; False while there can be none."""
        if offer == self._offered:
            return True
        first = self._offered is None
        stored = self._stored(offer.key) if first else set()  # an earlier attempt's
        with self._database.session() as session:
            if not first:
                parts.narrow(session, self._lease, offer)
            elif not parts.offer(session, self._lease, offer, without=stored):
                return False
        self._offered = offer
        if first:
            self._ring()
        return True

    def _stored(self, key: str) -> set[Part]:
        found = (Part.named(entry.key.rsplit("/", 1)[1]) for entry in self._storage.list(stored_pass(key)))
        return {part for part in found if part is not None}

    def _fetch(self, offer: Offer) -> None:
        for part in sorted(self._stored(offer.key) - self._fetched):
            self._storage.get_file(stored_part(offer.key, part), self._place.path(offer.key, part))
            self._fetched.add(part)

    def _clear(self, offer: Offer) -> None:
        """The pass is whole: nobody needs its parts any more."""
        with self._database.session() as session:
            held = parts.clear(session, self._lease)
        self._offered, self._fetched = None, set()
        if not held:  # another attempt may be at the same pass
            return
        self._storage.delete([entry.key for entry in self._storage.list(stored_pass(offer.key))])


def stored_pass(key: str) -> str:
    """Below it the storage has the finished parts of a pass."""
    return f"{PARTS}/{key}"


def stored_part(key: str, part: Part) -> str:
    return f"{stored_pass(key)}/{part.name}"
