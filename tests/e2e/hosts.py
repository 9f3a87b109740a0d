"""Hosts on one machine: network namespaces, each with an address of its own, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

#: Networks that the Internet does not have (RFC 5737, RFC 2544); this machine may have some of them.
_NETWORKS = ("198.51.100", "203.0.113", "192.0.2", "198.18.77", "198.19.77")


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


@dataclass(frozen=True)
class Network:
    gateway: str  #: the machine's own address on the bridge, where the servers listen
    hosts: Sequence[Host]


@contextmanager
def joined_hosts(count: int) -> Iterator[Network]:
    """So many hosts on one bridge; all removed at the end."""
    tag, network = os.getpid(), _free_network()
    bridge = f"lbk{tag}"
    with ExitStack() as undo:
        _ip("link", "add", bridge, "type", "bridge")
        undo.callback(_ip, "link", "del", bridge)
        _ip("address", "add", f"{network}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = [_join(undo, bridge, f"lbk{tag}h{n}", f"{network}.{10 + n}") for n in range(count)]
        yield Network(f"{network}.1", hosts)


def _free_network() -> str:
    """The first three numbers of a network that no interface of this machine is in."""
    taken = _ip("-4", "-oneline", "address") + _ip("-4", "route")
    return next(network for network in _NETWORKS if f"{network}." not in taken)


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


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
