"""Celery's broker as a folder, for one machine without Redis.

kombu's own file-system transport writes a message in place, so that a reader takes half of it and its worker dies. Here
a message appears whole, by a rename, and a file that cannot be read is passed over.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem, virtual

SCHEME = "limbeck-filesystem"


def register() -> None:
    """Make ``limbeck-filesystem://`` known to kombu."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"


def transport_options(folder: Path) -> dict[str, Any]:
    """Where a broker below ``folder`` keeps its messages and bindings; makes the folders."""
    places = {
        "data_folder_in": folder / "messages",
        "data_folder_out": folder / "messages",
        "control_folder": folder / "bindings",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return {**{name: str(place) for name, place in places.items()}, "polling_interval": 0.25}


class Channel(filesystem.Channel):
    """Messages and bindings that are never seen half-written."""

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:  # type: ignore[override]  # as kombu does
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"
        _write_whole(folder / name, json.dumps(payload).encode())

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        folder = Path(self.data_folder_in)
        for name in sorted(os.listdir(folder)):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            try:
                content = (folder / name).read_bytes()
                # Of several readers the one whose removal succeeds has the message.
                (folder / name).unlink()
                return json.loads(content.decode())
            except (OSError, ValueError):
                continue
        raise Empty

    def get_table(self, exchange: str) -> list[Any]:
        try:
            rows = json.loads(self._file_of(exchange).read_text())
        except (FileNotFoundError, ValueError):
            return []
        return [filesystem.exchange_queue_t(*row) for row in rows]

    def _queue_bind(self, exchange: str, routing_key: str | None, pattern: str | None, queue: str | None) -> None:
        bound = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
        file = self._file_of(exchange)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.with_suffix(".lock")):
            table = self.get_table(exchange)
            if bound not in table:
                _write_whole(file, json.dumps([bound, *table]).encode())

    def _file_of(self, exchange: str) -> Path:
        file: Path = self._exchange_file(exchange)  # type: ignore[no-untyped-call]  # kombu's, half annotated
        return file


class Transport(filesystem.Transport):
    Channel = Channel

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)  # type: ignore[no-untyped-call]
        # kombu's is one for all folders of a process: what is bound in one would not be written to the next.
        self.state = virtual.BrokerState()  # type: ignore[no-untyped-call]


def _write_whole(path: Path, content: bytes) -> None:
    # The name begins with a dot and ends in no queue's suffix: no reader looks at it.
    aside = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        aside.write_bytes(content)
        aside.rename(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
