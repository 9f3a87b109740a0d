"""The log of a server: the same lines by either way into it, and no request that fails for want of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LOOP = """
import asyncio, os, sys, structlog
from api.logs import configure_logging
from models.settings import Settings
configure_logging(Settings(log_format="json"))
log, writes = structlog.get_logger("limbeck.api"), []
write = sys.stderr.write
sys.stderr.write = lambda text: (writes.append(text.count("\\n")), write(text))
async def turn(*words):
    for word in words:
        log.info(word)
async def two():
    await turn("a", "b", "c")
    await asyncio.sleep(0)
    await turn("d")
    await asyncio.sleep(0)
    await turn("e")
    asyncio.get_running_loop().stop()
try:
    asyncio.run(two())
except RuntimeError:
    pass
asyncio.run(turn("f"))
log.info("g")
print(writes)
"""
_SCRIPT = """
import logging, structlog
from api.logs import configure_logging
from models.settings import Settings
configure_logging(Settings(log_format="{form}"))
ours, others = structlog.get_logger("limbeck.api"), logging.getLogger("somebody")
ours.debug("not shown")
others.debug("not shown")
ours.info("GET / 200 1.0 ms", request_id="find-me")
ours.warning("Grüße")
others.warning("Grüße")
def answer(headers):
    1 / 0
try:
    answer({{"authorization": "Bearer s3" + "cr3t"}})
except ZeroDivisionError:
    ours.exception("request failed", request_id="find-me")
    others.exception("request failed")
print("still here")
"""


def run(form: str, stderr: int | None = subprocess.PIPE) -> list[str]:
    command = [sys.executable, "-c", _SCRIPT.format(form=form)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
    assert done.stdout == "still here\n", done.stderr
    return (done.stderr or "").splitlines()


def test_json_is_the_same_from_structlog_and_from_the_standard_library() -> None:
    """Guards against a line that lacks its time or its level, and against a traceback over many lines: whoever
    collects them reads each as a document."""
    access, ours, others, failed, also = map(json.loads, run("json"))
    assert (access.pop("request_id"), access.pop("event"), access["level"]) == ("find-me", "GET / 200 1.0 ms", "info")
    assert access.keys() == ours.keys() - {"event"}
    ours.pop("timestamp"), others.pop("timestamp")
    assert ours == others == {"event": "Grüße", "level": "warning"}
    assert failed.pop("request_id") == "find-me"
    assert failed.keys() == also.keys() == {"event", "level", "timestamp", "exception"}
    assert (failed["level"], failed["exception"][0]["exc_type"]) == ("error", "ZeroDivisionError")


def test_text_is_the_same_from_structlog_and_from_the_standard_library() -> None:
    """Guards against two looks in one log."""
    access, ours, others, *failed = run("text")
    assert access.split()[1:] == "[info ] GET / 200 1.0 ms request_id=find-me".split()
    assert ours.split(" ", 1)[1].strip() == others.split(" ", 1)[1].strip() == "[warning  ] Grüße"
    assert sum("ZeroDivisionError" in line for line in failed) == 2


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_a_caller_sent_is_not_in_a_traceback(form: str) -> None:
    """Guards callers' keys and texts: they are variables of the frames in which a request fails."""
    assert "s3cr3t" not in "".join(run(form))


def test_lines_of_a_turn_are_written_together_and_none_is_lost() -> None:
    """Guards the order of the lines, and those of a loop that has ended before it wrote them."""
    done = subprocess.run([sys.executable, "-c", _LOOP], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == list("abcdefg")
    assert done.stdout.startswith("[3, 1, ")


def test_a_log_that_cannot_be_written_costs_no_request() -> None:
    """Guards against answers of 500 for a disk that is full: the line is written in the course of its request."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    with Path("/dev/full").open("wb") as full:
        run("json", full.fileno())
