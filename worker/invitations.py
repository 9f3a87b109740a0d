"""Passes on that a trainer wants hosts, as rows that idle workers take, and that it wants no more.

One thread for each attempt. The training waits for nobody for long: whatever fails here is logged.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from sqlalchemy.engine import make_url

from limbeck.errors import InvalidInput, LeaseLost, LimbeckError, Unavailable
from limbeck.hosts import Invitation
from limbeck.network import interface_of
from models.db import Database
from models.settings import Settings
from worker import places
from worker.lease import Lease

_log = logging.getLogger(__name__)
#: A bell may come to a worker that is busy, or to this one.
_RING_SECONDS = 3.0
_LAST_SECONDS = 5.0
_LOOPBACK = "127.0.0.1"


class Invitations:
    """Makes the rows of ``host_places`` what the trainer wants.

    Args:
        gpus: whether the job runs on GPUs.
        ring: says that there is something to do.
        pause: seconds between two tries.
    """

    def __init__(self, database: Database, lease: Lease, gpus: bool, ring: Callable[[], None], pause: float) -> None:
        self._database = database
        self._lease = lease
        self._gpus = gpus
        self._ring = ring
        self._pause = pause
        #: An invitation; the workers that are there; at last None.
        self._wishes: SimpleQueue[Invitation | Sequence[str] | None] = SimpleQueue()
        self._open = False
        self._thread: threading.Thread | None = None

    def invite(self, invitation: Invitation) -> None:
        """Say that hosts are wanted."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"hosts-{self._lease.job_id}", daemon=True)
            self._thread.start()
        self._wishes.put(invitation)

    def settle(self, workers: Sequence[str]) -> None:
        """Say that these workers' hosts are there, and no more are wanted."""
        self._wishes.put(workers)

    def finish(self) -> None:
        """The attempt is over."""
        if self._thread is not None:
            self._wishes.put([])
            self._wishes.put(None)
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        rung = 0.0
        while True:
            try:
                wish = self._wishes.get(timeout=self._pause)
            except Empty:
                if self._open and time.monotonic() - rung > _RING_SECONDS:
                    rung = time.monotonic()
                    self._ring()
                continue
            if wish is None or not self._fulfil(wish):
                return
            if self._open:
                rung = time.monotonic()
                self._ring()

    def _fulfil(self, wish: Invitation | Sequence[str]) -> bool:
        """Write it; False where there is no sense in going on."""
        while True:
            try:
                with self._database.session() as session:
                    if isinstance(wish, Invitation):
                        kind = places.kind_of_host(gpus=self._gpus)
                        places.invite(session, self._lease, wish, kind=kind, gpus=self._gpus)
                    else:
                        places.settle(session, self._lease, wish)
                self._open = isinstance(wish, Invitation)
                return True
            except LeaseLost:
                return False
            except LimbeckError as error:
                _log.warning("%s: its hosts cannot be told just now: %s", self._lease.job_id, error)
                if not self._wishes.empty():  # of two wishes the later one counts
                    return True
                time.sleep(self._pause)
            except Exception:  # the boundary: the training goes on with its own host
                _log.exception("%s: no hosts are invited any more", self._lease.job_id)
                return False


def require_own_address(settings: Settings) -> None:
    """For everything that starts workers, before it does: a job over several hosts would fail on one that names an
    address which is not its own.

    Raises:
        InvalidInput: it does.
    """
    if settings.ranks_host is None:
        return
    try:
        interface_of(settings.ranks_host)
    except Unavailable as error:
        raise InvalidInput(error.message) from error
    except OSError as error:
        raise InvalidInput(f"LIMBECK_RANKS_HOST: {settings.ranks_host!r} is found under no address: {error}") from error


def own_address(settings: Settings) -> str | None:
    """By which the other hosts of a training reach this one, an IPv4 address; None where nobody has said.

    What torch opens there knows no password: beyond this machine that is for whoever runs the worker to decide, and not
    for whoever submits a job.
    """
    if settings.ranks_host is not None:
        return settings.ranks_host
    url = make_url(settings.database_url)
    if not url.host:
        return _LOOPBACK
    try:
        # Nothing is sent: the kernel says from which address it would be.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((url.host, url.port or 5432))
            address: str = asking.getsockname()[0]
    except OSError:
        return None
    return address if ipaddress.ip_address(address).is_loopback else None
