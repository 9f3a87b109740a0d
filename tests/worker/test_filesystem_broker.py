"""The broker as a folder: nothing half-written is read, nothing is read twice, nothing stops a reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu.connection import Connection

from worker import filesystem_broker

MESSAGES, WRITERS, READERS = 150, 3, 2
_OPEN = """
import sys
from pathlib import Path
from queue import Empty
from kombu import Connection
from worker import filesystem_broker
filesystem_broker.register()
options = filesystem_broker.transport_options(Path(sys.argv[1]))
connection = Connection(f"limbeck-filesystem://{sys.argv[1]}", transport_options=options)
queue = connection.SimpleQueue("bells")
"""
WRITER = f"""{_OPEN}
for number in range({MESSAGES}):
    queue.put({{"from": sys.argv[2], "number": number}})
"""
READER = f"""{_OPEN}
while True:
    try:
        message = queue.get(timeout=2)
    except Empty:
        break
    message.ack()
    print(message.payload["from"], message.payload["number"], flush=True)
"""


@pytest.fixture
def connection(tmp_path: Path) -> Any:
    filesystem_broker.register()
    options = filesystem_broker.transport_options(tmp_path)
    address = f"limbeck-filesystem://{tmp_path}"
    with Connection(address, transport_options=options) as opened:  # type: ignore[no-untyped-call]
        yield opened


def test_every_message_of_several_writers_is_read_once_by_several_readers(tmp_path: Path) -> None:
    """Guards against kombu's own transport, where a reader takes half of a message and its worker dies."""

    def start(script: str, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", script, str(tmp_path), name]
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)

    readers = [start(READER, f"reader {i}") for i in range(READERS)]
    writers = [start(WRITER, f"writer-{i}") for i in range(WRITERS)]
    read = [line for reader in readers for line in reader.communicate(timeout=60)[0].splitlines()]
    for writer in writers:
        writer.communicate(timeout=60)
    assert [one.returncode for one in [*readers, *writers]] == [0] * (READERS + WRITERS)
    assert len(read) == len(set(read)) == MESSAGES * WRITERS


def test_an_unreadable_message_is_passed_over(connection: Any, tmp_path: Path) -> None:
    queue = connection.SimpleQueue("bells")
    messages = tmp_path / "messages"
    (messages / "0_torn.bells.msg").write_bytes(b'{"body": "half of a')
    (messages / "1_folder.bells.msg").mkdir()
    queue.put("whole")
    message = queue.get(timeout=1)
    message.ack()
    assert message.payload == "whole"
    with pytest.raises(Empty):
        queue.get(timeout=0.3)
    queue.close()


def test_a_message_that_cannot_be_written_leaves_nothing_behind(connection: Any, tmp_path: Path) -> None:
    queue = connection.SimpleQueue("bells")
    messages = tmp_path / "messages"
    messages.rmdir()
    with pytest.raises(FileNotFoundError):
        queue.put("nowhere to go")
    messages.mkdir()
    queue.put("now")
    assert [file.suffix for file in messages.iterdir()] == [".msg"]
    queue.close()


def test_bindings_that_are_torn_or_made_at_once_do_not_stop_anybody(connection: Any, tmp_path: Path) -> None:
    """Guards against kombu's table of bindings, which is emptied before it is locked."""
    (tmp_path / "bindings" / "torn.exchange").write_text('[["", ""')
    queue = connection.SimpleQueue("torn")
    queue.put("heard")
    message = queue.get(timeout=1)
    message.ack()
    assert message.payload == "heard"
    queue.close()
