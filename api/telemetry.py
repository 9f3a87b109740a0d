"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from api.answering import Answering
from api.collectors import Jobs, StudentsInUse
from models.db import Database

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
        self._registry.register(Jobs(database))

    def watch_streams(self, open_streams: Callable[[], int]) -> None:
        """Count the open streams of events whenever somebody asks."""
        self._gauge("limbeck_event_streams", "Open streams of events.", open_streams)

    def watch_answering(self, answering: Answering) -> None:
        """Tell what waits, what is loaded and how that is asked whenever somebody asks."""
        students, batcher = answering.students, answering.batcher
        self._gauge("limbeck_predict_waiting_texts", "Texts that wait for an answer.", lambda: batcher.waiting)
        self._gauge("limbeck_students_loaded", "Students in memory.", lambda: len(students.loaded))
        self._gauge(
            "limbeck_students_bytes",
            "What they take, estimated.",
            lambda: sum(one.bytes for one in students.loaded),
        )
        self._registry.register(StudentsInUse(answering))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str, value: Callable[[], int]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)
