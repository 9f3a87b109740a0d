"""wrk at one server: so many connections, each request one real text."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = """\
local bodies, path, place = {{}}, "{path}", 0
for line in io.lines("{bodies}") do bodies[#bodies + 1] = line end
math.randomseed(1)
init = function() place = math.random(#bodies) end
request = function()
  place = place % #bodies + 1
  return wrk.format("POST", path, {{["Content-Type"] = "application/json"}}, bodies[place])
end
done = function(summary, latency)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), bad + summary.errors.status))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one server answered to so many connections."""

    server: str
    layers: int
    texts: str
    clients: int
    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: int


def write_script(folder: Path, path: str, bodies: Sequence[Mapping[str, Any]]) -> Path:
    """A script for wrk that POSTs the bodies to ``path``, one after the other."""
    lines, script = folder / "bodies", folder / "post.lua"
    lines.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    script.write_text(_SCRIPT.format(path=path, bodies=lines))
    return script


def command(url: str, script: Path, *, clients: int, seconds: float) -> list[str]:
    # wrk takes whole seconds alone.
    return ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s", str(script), url]


def press(url: str, script: Path, *, clients: int, seconds: float, where: tuple[str, int, str]) -> Load:
    """Run wrk.

    Args:
        where: server, layers and kind of texts, for the record.
    """
    done = subprocess.run(
        command(url, script, clients=clients, seconds=seconds),
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
    )
    return read(done.stdout, clients, where)


def read(printed: str, clients: int, where: tuple[str, int, str]) -> Load:
    """What wrk said of a load."""
    found = re.search(r"^RESULT (.+)$", printed, re.MULTILINE)
    assert found is not None, printed
    requests, duration, p50, p95, p99, errors = (int(number) for number in found[1].split())
    return Load(*where, clients, requests / duration * 1e6, p50 / 1e3, p95 / 1e3, p99 / 1e3, errors)


def medians(loads: Sequence[Load]) -> list[Load]:
    """One row where a server was measured several times."""
    groups: dict[tuple[str, int, str, int], list[Load]] = {}
    for one in loads:
        groups.setdefault((one.server, one.layers, one.texts, one.clients), []).append(one)

    def middle(rows: list[Load], name: str) -> float:
        return statistics.median(getattr(row, name) for row in rows)

    measured = ("requests_per_second", "p50_ms", "p95_ms", "p99_ms")
    return [
        Load(*key, *(middle(rows, name) for name in measured), sum(row.errors for row in rows))
        for key, rows in groups.items()
    ]
