"""Hosts on one machine: network namespaces, each with an address of its own, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

#: Addresses that no real network has (RFC 5737).
GATEWAY = "192.0.2.1"


@dataclass(frozen=True)
class Host:
    """A namespace; processes of several share files, but no network other than the bridge."""

    name: str
    address: str
    cable: str  #: the bridge's end of its link

    def command(self, command: Sequence[str]) -> list[str]:
        """``command``, to be run on this host; it replaces its launcher, so its process is the one that was started."""
        return ["ip", "netns", "exec", self.name, *command]

    def cut_off(self) -> None:
        """Pull the cable: nothing is answered any more, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def connect(self) -> None:
        _ip("link", "set", self.cable, "up")


def why_not() -> str | None:
    """Why this machine cannot have such hosts."""
    if shutil.which("ip") is None:
        return "ip (iproute2) is not on the PATH"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"lbk{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespace can be made here: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@contextmanager
def joined_hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts on one bridge, which is :data:`GATEWAY` for the machine itself; all removed at the end."""
    tag = os.getpid()
    bridge = f"lbk{tag}"
    with ExitStack() as undo:
        _ip("link", "add", bridge, "type", "bridge")
        undo.callback(_ip, "link", "del", bridge)
        _ip("address", "add", f"{GATEWAY}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield [_join(undo, bridge, f"lbk{tag}h{n}", f"192.0.2.{10 + n}") for n in range(count)]


def _join(undo: ExitStack, bridge: str, name: str, address: str) -> Host:
    host = Host(name, address, f"{name}b")
    _ip("netns", "add", name)
    # The link goes with the namespace that has its other end.
    undo.callback(_ip, "netns", "del", name)
    _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", host.cable, "master", bridge, "up")
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "link", "set", "eth0", "up")
    return host


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
