"""``python -m benchmarks.chaos``: exits 1 whenever a job was lost or ran twice; the control, when it shows neither."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chaos.faults import MEANING
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.run import Report, run
from benchmarks.report import RESULTS, ROOT, machine, markdown_table, replace_part, write_json
from tests.services import ServiceMissing

PAGE = ROOT / "docs" / "reliability.md"
USAGE_ERROR = 2
_PREFIX = "chaos-"
HEAD = (
    "broker, database",
    "jobs",
    "faults",
    "once",
    "lost",
    "twice",
    "stale writes refused",
    "attempts",
    "steps repeated",
    "seconds repeated",
    "interval, s",
    "over 95 % of the intervals",
    "orphans",
    "minutes",
)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.page:
        write_page()
        return 0
    plan = Plan(
        jobs=options.jobs,
        faults=options.faults,
        broker=options.broker,
        database=options.database,
        seed=options.seed,
        fence=not options.no_fence,
    )
    try:
        report = run(plan, keep=options.keep)
    except ServiceMissing as missing:
        print(f"{plan.broker} and {plan.database} cannot be tested here: {missing}", file=sys.stderr)
        return USAGE_ERROR
    document = _document(report)
    print(table([document]))
    print(faults_table([document]))
    for line in document["failures"]:
        print(line)
    print(f"written to {write_json(_PREFIX + plan.name, document)}")
    if plan.fence:
        return 1 if report.failures else 0
    shown = bool(report.judgement.lost or report.judgement.twice)
    print("The control shows failures, as it has to." if shown else "The control shows NO failure: the test is blind.")
    return 0 if shown else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    wrote = f"write the tables of {PAGE.relative_to(ROOT)} from the runs that are there"
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--broker", choices=("redis", "filesystem"), default="filesystem")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="sqlite")
    parser.add_argument("--seed", type=int, default=0, help="draws the faults, their order and their moments")
    parser.add_argument("--no-fence", action="store_true", help="the negative control: workers without a fence")
    parser.add_argument("--page", action="store_true", help=f"measure nothing; {wrote}")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep data and logs there")
    return parser.parse_args(arguments)


def _document(report: Report) -> dict[str, Any]:
    """The report as JSON, with what the tables need."""
    document = asdict(report)
    document["command"] = report.plan.command
    document["machine"] = machine()
    document["failures"] = report.failures
    found = document["judgement"]
    found["lost"] = list(report.judgement.lost)
    found["repeated"] = [asdict(one) for one in report.judgement.repeated if one.steps]
    intervals = report.judgement.calm_seconds
    found["intervals"] = {
        "count": len(intervals),
        "median_seconds": median(intervals) if intervals else None,
        "most_seconds": report.judgement.interval_seconds,
        "longest_seconds": max(intervals, default=None),
    }
    found["over_an_interval"] = len(report.judgement.over_an_interval)
    return document


def table(documents: list[dict[str, Any]]) -> str:
    """One row a run."""
    return markdown_table(HEAD, map(_row, documents))


def _row(document: Mapping[str, Any]) -> list[str]:
    plan, found = document["plan"], document["judgement"]
    refused = f"{document['refused_in_logs']} + {document['refused_probes']}" if plan["fence"] else "no fence"
    return [
        f"{plan['broker']}, {plan['database']}{'' if plan['fence'] else ', **without fence**'}",
        str(found["jobs"]),
        str(sum(document["faults"].values())),
        str(found["once"]),
        str(len(found["lost"])),
        str(len(found["twice"])),
        refused,
        str(found["attempts"]),
        *_repeated(found),
        str(document["orphans"]),
        f"{document['minutes']:.1f}",
    ]


def _repeated(found: Mapping[str, Any]) -> list[str]:
    """The cells of what was trained again, and of what a checkpoint's interval was."""
    costs, intervals = found["repeated"], found["intervals"]
    steps = [one["steps"] for one in costs]
    seconds = [one["seconds"] for one in costs]
    worked = max((one["seconds"] - one["away"] for one in costs), default=0.0)
    return [
        f"{sum(steps)}; at most {max(steps, default=0)}",
        f"{sum(seconds):.1f}; at most {max(seconds, default=0.0):.1f}, with the database there {worked:.1f}",
        f"{intervals['median_seconds'] or 0.0:.1f}; 95 % below {intervals['most_seconds']:.1f}; "
        f"longest {intervals['longest_seconds'] or 0.0:.1f}",
        str(found["over_an_interval"]),
    ]


def faults_table(documents: list[dict[str, Any]]) -> str:
    """One row a kind of fault, one column a run."""
    names = [document["plan"]["broker"] + ", " + document["plan"]["database"] for document in documents]
    names = [
        name + ("" if document["plan"]["fence"] else ", no fence")
        for name, document in zip(names, documents, strict=True)
    ]
    rows = (
        [kind.replace("_", " "), what, *(str(document["faults"].get(kind, "–")) for document in documents)]
        for kind, what in MEANING.items()
    )
    return markdown_table(("fault", "what is done", *names), rows)


def write_page(page: Path = PAGE) -> None:
    """Put the runs whose results are there into the page: the control last."""
    found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"{_PREFIX}*.json"))]
    documents = sorted(found, key=lambda document: not document["plan"]["fence"])
    hosts = {f"{(here := one['machine'])['date']}, {here['cores']} cores of {here['cpu']}" for one in documents}
    commands = "\n".join(document["command"] for document in documents)
    replace_part(page, "chaos", f"{'; '.join(sorted(hosts))}:\n\n```\n{commands}\n```\n\n{table(documents)}")
    replace_part(page, "chaos-faults", faults_table(documents))


if __name__ == "__main__":
    sys.exit(main())
