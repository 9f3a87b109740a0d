"""How fast students answer over HTTP: ``python -m benchmarks.serving [--goals] [--page]``.

Cuts students of 3 and 6 layers from the built-in teacher, and serves them by Limbeck's API and by other servers, each
with what it needs in a virtual environment of its own (``benchmarks/.cache/venvs``, made when it is missing). wrk loads
them one after the other, in turns, at 1, 8, 32 and 64 connections. In the same minutes the same texts are answered in
this process by the same runtime: that is the limit. Then a hundred students on one server.

The load generator runs on the same cores as the servers and takes some of what it measures; wrk takes least.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.report import ROOT, machine, replace_part, write_json
from benchmarks.serving import table
from benchmarks.serving.goals import Goal, judged
from benchmarks.serving.in_process import in_process
from benchmarks.serving.load import Load, medians
from benchmarks.serving.many import Many, many
from benchmarks.serving.peers import PEERS, install, versions
from benchmarks.serving.servers import Start, measure, servers
from benchmarks.serving.students import student_folder, texts_of

PAGE = ROOT / "docs" / "performance.md"
CLIENTS = (1, 8, 32, 64)
PARTS = ("limbeck", "in-process", "many", *dict.fromkeys(peer.name.split(" ")[0] for peer in PEERS))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if shutil.which("wrk") is None:
        print("benchmarks.serving needs wrk on the path: apt-get install wrk", file=sys.stderr)
        return 2
    peers = [peer for peer in PEERS if peer.name.split(" ")[0] in options.only]
    for peer in peers:
        install(peer)
    began = time.monotonic()
    loads, starts = _side_by_side(options)
    hundred = many(student_folder(3), texts_of("short"), 4 * options.seconds) if "many" in options.only else None
    found = medians(loads)
    goals = judged(found, starts, hundred)
    report: dict[str, Any] = {
        "command": " ".join(("python -m benchmarks.serving", *(arguments or sys.argv[1:]))),
        "machine": machine() | {"load": os.getloadavg()[0]},
        "versions": {peer.venv.name: list(versions(peer)) for peer in peers},
        "seconds": round(time.monotonic() - began),
        "loads": [asdict(one) for one in found],
        "starts": [asdict(one) for one in starts],
        "many": hundred and asdict(hundred),
        "goals": {one.name: one.verdict for one in goals},
    }
    return _tell(report, _page(report, found, starts, hundred, goals), goals, options)


def _side_by_side(options: argparse.Namespace) -> tuple[list[Load], list[Start]]:
    """All servers in turns: whatever the machine does besides then hits all of them."""
    loads, starts = list[Load](), list[Start]()
    texts = {kind: texts_of(kind) for kind in options.texts}
    # "infinity" must not stand for "infinity-optimum" as well.
    chosen = [one for one in servers(PARTS) if one.name.split(" ")[0] in options.only]
    for layers in options.layers if chosen or "in-process" in options.only else ():
        student = student_folder(layers)
        for repeat in range(options.repeats):
            for server in chosen:
                print(f"{server.name}, {layers} layers, run {repeat + 1}", flush=True)
                start, found = measure(server, student, layers, texts, seconds=options.seconds, clients=options.clients)
                loads += found
                starts.append(start)
            for kind, each in texts.items() if "in-process" in options.only else ():
                loads += in_process(student, each, options.seconds, layers, kind, options.clients)
    return loads, starts


def _page(
    report: dict[str, Any], loads: Sequence[Load], starts: Sequence[Start], hundred: Many | None, goals: Sequence[Goal]
) -> str:
    here = report["machine"]
    parts = [f"```\n{report['command']}\n```", f"{here['cpu']}, {here['cores']} cores, {here['date']}."]
    parts += [f"`{name}`: {', '.join(found)}." for name, found in report["versions"].items()]
    parts += [table.rates(loads, starts)] if loads else []
    parts += [table.of_many(hundred)] if hundred else []
    return "\n\n".join([*parts, table.verdicts(goals)])


def _tell(report: dict[str, Any], page: str, goals: Sequence[Goal], options: argparse.Namespace) -> int:
    print(page)
    print(f"{report['seconds']} s; written to {write_json(options.name, report)}")
    if options.page:
        replace_part(PAGE, "serving", page)
    missed = [goal for goal in goals if goal.missed]
    for goal in missed:
        print(f"MISSED: {goal.name}: {'; '.join(goal.missed or ())}")
    return 1 if options.goals and missed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts of the run")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--texts", nargs="+", choices=["short", "long"], default=["short", "long"])
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load; wrk takes whole ones")
    parser.add_argument("--repeats", type=int, default=2, help="turns of all servers; medians are shown")
    parser.add_argument("--name", default="serving", help="of the file in benchmarks/results")
    parser.add_argument("--page", action="store_true", help=f"write the tables into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--goals", action="store_true", help="exit 1 where a goal is missed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
