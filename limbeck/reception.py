"""Greets the hosts that come to a training, all at the same time: one who says nothing keeps nobody else waiting."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from limbeck.network import greet, in_time

_TICK = 0.2
#: Greeted at the same time; whoever else comes waits until one of them is done, which takes seconds at most.
_MOST = 32

#: The name that a host has said, and the connection to it.
Guest: TypeAlias = "tuple[str, Connection[Any, Any]]"


class Reception:
    """Lets in who knows the secret, while the block lasts.

    Args:
        listener: is left listening afterwards.
    """

    def __init__(self, listener: socket.socket, secret: str) -> None:
        listener.settimeout(_TICK)
        self._listener = listener
        self._secret = secret
        self._places = threading.Semaphore(_MOST)
        self._greeted: SimpleQueue[Guest] = SimpleQueue()
        self._lock = threading.Lock()
        self._over = False

    def __enter__(self) -> Reception:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
        for _name, connection in self._arrived():
            connection.close()

    def guests(self) -> list[Guest]:
        """Who has been let in since the last call; waits a moment for somebody to come."""
        if self._places.acquire(timeout=_TICK) and not self._begin():
            self._places.release()
        return self._arrived()

    def _begin(self) -> bool:
        """Have a thread greet who comes; False where it could not begin."""
        try:
            peer, _ = self._listener.accept()
        except TimeoutError:
            return False
        except OSError:  # of one that has gone again, or for want of descriptors, which may pass
            time.sleep(_TICK)
            return False
        try:
            threading.Thread(target=self._greet, args=(peer,), name="greets", daemon=True).start()
        except RuntimeError:  # no more threads
            peer.close()
            return False
        return True

    def _greet(self, peer: socket.socket) -> None:
        try:
            with in_time(peer):
                connection = greet(peer, self._secret, listens=True)
                if connection is None:
                    return
                try:
                    name = str(connection.recv())
                except (EOFError, OSError):
                    connection.close()
                    return
            self._let_in(name, connection)
        except (OSError, RuntimeError):  # there was no descriptor, or no thread, to watch the time
            peer.close()
        finally:
            self._places.release()

    def _let_in(self, name: str, connection: Connection[Any, Any]) -> None:
        with self._lock:
            if not self._over:
                self._greeted.put((name, connection))
                return
        connection.close()

    def _arrived(self) -> list[Guest]:
        found: list[Guest] = []
        with suppress(Empty):
            while True:
                found.append(self._greeted.get_nowait())
        return found
