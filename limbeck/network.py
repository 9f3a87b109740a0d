"""Connections between the hosts of a training: who may speak, over which interface, and when the other end is gone."""

from __future__ import annotations

import fcntl
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from limbeck.errors import Unavailable

#: That two ends may take until they know each other.
_GREETING_SECONDS = 5.0
#: A host that is silent on the wire for about so long is gone: its cable, or the whole of it.
_GONE_SECONDS = 20
_SIOCGIFADDR = 0x8915


@contextmanager
def in_time(peer: socket.socket) -> Iterator[None]:
    """A greeting has to be over with the block. Where it takes too long the connection is cut: whoever reads or writes
    in the block finds its end, however slowly the other one goes on."""
    with peer.dup() as same:
        timer = threading.Timer(_GREETING_SECONDS, _cut, [same])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def greet(peer: socket.socket, secret: str, *, listens: bool) -> Connection[Any, Any] | None:
    """Have both ends prove that they know the secret (HMAC over a challenge, as ``multiprocessing`` does it); None
    where the other one does not. What comes through the connection is unpickled, which nobody else may cause.

    Args:
        peer: connected, in :func:`in_time`; it is taken over, or closed.
        listens: whether this is the end that accepted.
    """
    peer.settimeout(None)
    _notice_silence(peer)
    connection: Connection[Any, Any] = Connection(peer.detach())
    key = secret.encode()
    try:
        for step in (deliver_challenge, answer_challenge) if listens else (answer_challenge, deliver_challenge):
            step(connection, key)
    except (AuthenticationError, AssertionError, EOFError, OSError):
        connection.close()
        return None
    return connection


def interface_of(address: str) -> str:
    """The network interface that has this IPv4 address as its first one, which is the one that gloo and NCCL take.

    Raises:
        Unavailable: none of this machine's has.
    """
    wanted = socket.inet_aton(socket.gethostbyname(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                request = struct.pack("256s", name.encode()[:15])
                if fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)[20:24] == wanted:
                    return name
    raise Unavailable(
        f"This machine has no network interface whose first IPv4 address is {address}, and ranks can use no other; "
        "LIMBECK_RANKS_HOST may name one that they can."
    )


def _cut(peer: socket.socket) -> None:
    with suppress(OSError):  # it has ended already
        peer.shutdown(socket.SHUT_RDWR)


def _notice_silence(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    quarter = _GONE_SECONDS // 4
    for option, value in (
        ("TCP_KEEPIDLE", quarter),
        ("TCP_KEEPINTVL", quarter),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _GONE_SECONDS * 1000),
    ):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
