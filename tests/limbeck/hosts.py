"""What the tests of trainings over several hosts share: a configuration, who listens, and who passes invitations on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.callbacks import Callbacks
from limbeck.errors import Conflict
from limbeck.hosts import HostsPlace, Invitation
from limbeck.lending import lend

TWO_HOSTS = {"teacher": "path:t", "dataset": "path:d", "student": 2, "training": {"devices": 2, "hosts": 2}}


class Told(Callbacks):
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.stop = False

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, message))

    def should_stop(self) -> bool:
        return self.stop


class Inviting:
    """Whoever passes invitations on: does so to guests that know these secrets, or the right one."""

    def __init__(self, secrets: Sequence[str | None] = (), seconds: float = 30) -> None:
        self.place = HostsPlace("127.0.0.1", seconds, self.invite, lambda workers: self.settled.append([*workers]))
        self.invited: list[Invitation] = []
        self.settled: list[list[str]] = []
        self.refused: list[Exception] = []
        self._secrets = secrets
        self.threads: list[threading.Thread] = []

    def invite(self, invitation: Invitation) -> None:
        self.invited.append(invitation)
        self.threads = [
            threading.Thread(target=self._come, args=(invitation, secret, name := f"guest {number}"), name=name)
            for number, secret in enumerate(self._secrets)
        ]
        for thread in self.threads:
            thread.start()

    def _come(self, invitation: Invitation, secret: str | None, name: str) -> None:
        one = Invitation(invitation.address, invitation.port, secret or invitation.secret, 1, 2, 1)
        try:
            lend(one, name, Path("unused"), {}, lambda: False, lambda: None)
        except Conflict as error:
            self.refused.append(error)
