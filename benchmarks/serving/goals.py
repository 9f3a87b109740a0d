"""The goals of ``shared/PERFORMANCE.md``, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.serving.load import Load
from benchmarks.serving.many import Many
from benchmarks.serving.servers import Start

Rates = dict[tuple[str, int, str, int], Load]

#: (Limbeck's, the other one, how many times its rate, at which numbers of clients)
AHEAD: tuple[tuple[str, str, float, tuple[int, ...]], ...] = (
    *(
        (own, peer, times, (8, 32, 64))
        for own, times in (("onnx", 2), ("onnx-int8", 3))
        for peer in ("infinity", "litserve")
    ),
    *((form, f"infinity-optimum {form}", 1, (1, 8, 32, 64)) for form in ("onnx", "onnx-int8")),
    ("onnx", "pipeline", 7, (64,)),
    *(
        (form, f"in process {form}", share, (at,))
        for form in ("onnx", "onnx-int8")
        for at, share in ((8, 0.6), (64, 0.75))
    ),
)
#: Of p50, at the most clients.
P99 = 2.5
_MOST = 64
#: Two loads of a few seconds differ by so much on a quiet machine; less than this is no fall.
NOISE = 0.05
COLD_SECONDS = 1.0
#: Labels that two correct implementations may give differently: of a random head they stand on an edge.
AGREEMENT = 0.9


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal, and where it was missed; ``None`` where the run does not tell."""

    name: str
    missed: tuple[str, ...] | None

    @property
    def verdict(self) -> str:
        if self.missed is None:
            return "not measured"
        return "met" if not self.missed else "missed: " + "; ".join(self.missed)


def judged(loads: Sequence[Load], starts: Sequence[Start], many: Many | None) -> list[Goal]:
    """Every goal, in the order of the document."""
    rates: Rates = {(one.server, one.layers, one.texts, one.clients): one for one in loads}
    own = [one for one in loads if one.server.startswith("limbeck")]
    found = [_ahead(rates, *pair) for pair in AHEAD]
    found.append(Goal("throughput never falls as clients grow", _some(_counts(own)[1:], list(_falls(rates)))))
    most = [one for one in own if one.clients == _MOST]
    slow = [f"{_where(one)}: {one.p99_ms / one.p50_ms:.1f}" for one in most if one.p99_ms > P99 * one.p50_ms]
    found.append(Goal(f"p99 at {_MOST} clients ≤ {P99} × p50", _some(most, slow)))
    failed = [f"{_where(one)}: {one.errors}" for one in loads if one.errors]
    failed += [f"{_where(one)}: none was answered" for one in loads if not one.requests_per_second]
    found.append(Goal("no request fails", _some(loads, failed)))
    apart = [f"{one.server}, {one.layers} layers: {one.agreement:.2f}" for one in starts if one.agreement < AGREEMENT]
    found.append(Goal("every server answers with the student's labels", _some(starts, apart)))
    return found + _of_many(many)


def _ahead(rates: Rates, form: str, other: str, times: float, clients: Sequence[int]) -> Goal:
    at = ", ".join(map(str, clients))
    missed, seen = [], False
    for (server, layers, texts, count), one in rates.items():
        peer = rates.get((other, layers, texts, count))
        if server != f"limbeck {form}" or count not in clients or peer is None:
            continue
        seen = True
        ratio = one.requests_per_second / peer.requests_per_second if peer.requests_per_second else float("inf")
        if ratio < times or (times == 1 and ratio <= 1):
            missed.append(f"{layers} layers, {texts} texts, {count} clients: {ratio:.2f}")
    sign = "> 1" if times == 1 else f"≥ {times:g}"
    return Goal(f"{form} {sign} × {other} at {at} clients", tuple(missed) if seen else None)


def _falls(rates: Rates) -> Iterator[str]:
    for key in dict.fromkeys(key[:3] for key in rates if key[0].startswith("limbeck")):
        counts = sorted(count for *rest, count in rates if tuple(rest) == key)
        for fewer, more in itertools.pairwise(counts):
            before, after = (rates[*key, count].requests_per_second for count in (fewer, more))
            if after < (1 - NOISE) * before:
                yield f"{_where(rates[*key, more])}: {after / before:.2f} of the rate at {fewer}"


def _of_many(many: Many | None) -> list[Goal]:
    def goal(name: str, missed: Callable[[Many], str | None]) -> Goal:
        if many is None:
            return Goal(name, None)
        found = missed(many)
        return Goal(name, () if found is None else (found,))

    return [
        goal(
            f"a cold student answers in under {COLD_SECONDS:g} s",
            lambda run: None if run.cold.p99 < COLD_SECONDS * 1000 else f"p99 {run.cold.p99:.0f} ms",
        ),
        goal(
            "a hundred students within the memory limit",
            lambda run: (
                None
                if run.peak_mb - run.idle_mb <= run.limit_mb
                else f"{run.peak_mb - run.idle_mb:.0f} MB beyond the idle process; limit {run.limit_mb:.0f} MB"
            ),
        ),
        goal(
            "one hot student does not starve the others: their p99 ≤ its own",
            lambda run: (
                None
                if run.warm_beside_hot.p99 <= run.hot.p99_ms
                else f"{run.warm_beside_hot.p99:.0f} ms beside {run.hot.p99_ms:.0f} ms"
            ),
        ),
    ]


def _counts(loads: Sequence[Load]) -> list[int]:
    return sorted({one.clients for one in loads})


def _some(measured: Sequence[object], missed: list[str]) -> tuple[str, ...] | None:
    return tuple(missed) if measured else None


def _where(one: Load) -> str:
    return f"{one.server}, {one.layers} layers, {one.texts} texts, {one.clients} clients"
