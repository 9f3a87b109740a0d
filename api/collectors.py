"""Numbers that are put together when Prometheus asks: of jobs, from the database; of students that are loaded."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from api.answering import Answering
from limbeck.errors import Unavailable
from models.db import Database
from models.job import JobStatus
from models.part import TeacherPart
from models.repository import offered
from models.repository.overview import count_by_status


class Jobs(Collector):
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


class StudentsInUse(Collector):
    """Series by a student's id, for those that are loaded: one that is dropped or deleted takes its series along, and
    begins at zero when it is loaded again, which Prometheus takes for a restart."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def collect(self) -> Iterable[Metric]:
        students = self._answering.students
        model = ("model",)
        requests = CounterMetricFamily(
            "limbeck_student_requests", "Requests to a student, by how they ended.", labels=("model", "outcome")
        )
        seconds = HistogramMetricFamily(
            "limbeck_student_answer_seconds",
            "From when a student and the request's body are there to the answer, of requests that were answered.",
            labels=model,
        )
        texts = HistogramMetricFamily("limbeck_student_batch_texts", "Texts that are computed together.", labels=model)
        for model_id, student in students.ready.items():
            tally = self._answering.batcher.tallies.of(student)
            for outcome, count in tally.ended.items():
                requests.add_metric((model_id, outcome.value), count)
            seconds.add_metric((model_id,), tally.seconds.cumulated(), tally.seconds.sum)
            texts.add_metric((model_id,), tally.texts.cumulated(), tally.texts.sum)
        names = GaugeMetricFamily(
            "limbeck_student_names", "1 for each name by which a student was asked.", labels=("model", "name")
        )
        for name, model_id in students.names.items():
            names.add_metric((model_id, name), 1)
        return requests, seconds, texts, names
