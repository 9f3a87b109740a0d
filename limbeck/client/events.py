"""Reading server-sent events (the ``text/event-stream`` format of the HTML standard)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from limbeck.client.records import Event


def read_events(chunks: Iterable[str]) -> Iterator[Event]:
    """Numbered events from the text of a stream.

    Left out are comments, an event that the end of the stream cuts off, and ``progress``, which has no ``id``: it tells
    how things stand and would not come again.
    """
    fields: dict[str, str] = {}
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not line:
            if "id" in fields and "data" in fields:
                yield Event.model_validate(json.loads(fields["data"]))
            fields = {}


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    # str.splitlines, which httpx.iter_lines uses, also splits at U+2028 and U+0085; those may stand in a message.
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        for line in whole:
            yield line.removesuffix("\r")
