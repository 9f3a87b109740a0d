"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.answering import Answering
from limbeck.errors import Unavailable
from models.db import Database
from models.job import JobStatus
from models.part import TeacherPart
from models.repository import offered
from models.repository.overview import count_by_status

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)


class Telemetry:
    """One application's counters; a registry of its own, so that two applications in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "limbeck_http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "limbeck_http_request_seconds",
            "From a request's first byte to its answer's last; streams of events last as long as they are watched.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def watch_jobs(self, database: Database) -> None:
        """Count the jobs of ``database`` whenever somebody asks."""
        self._registry.register(_Jobs(database))

    def watch_streams(self, open_streams: Callable[[], int]) -> None:
        """Count the open streams of events whenever somebody asks."""
        self._gauge("limbeck_event_streams", "Open streams of events.", open_streams)

    def watch_answering(self, answering: Answering) -> None:
        """Tell what waits and what is loaded whenever somebody asks."""
        students, batcher = answering.students, answering.batcher
        self._gauge("limbeck_predict_waiting_texts", "Texts that wait for an answer.", lambda: batcher.waiting)
        self._gauge("limbeck_students_loaded", "Students in memory.", lambda: len(students.loaded))
        self._gauge(
            "limbeck_students_bytes",
            "What they take, estimated.",
            lambda: sum(one.bytes for one in students.loaded),
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)


class _Jobs(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not ask the database

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("limbeck_database_up", "Whether the database answers; else nothing is told of jobs.")
        try:
            with self._database.reading() as session:
                counts, shared = count_by_status(session), offered.count(session, TeacherPart)
        except Unavailable:  # just now the rest is looked for
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        family = GaugeMetricFamily("limbeck_jobs", "Jobs by status.", labels=("status",))
        for status in JobStatus:
            family.add_metric((status.value,), counts.get(status, 0))
        yield family
        parts = "Parts of teachers' passes that jobs offer to idle workers, by state."
        family = GaugeMetricFamily("limbeck_teacher_parts", parts, labels=("state",))
        for state, count in shared.items():
            family.add_metric((state,), count)
        yield family
