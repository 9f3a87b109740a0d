"""Numbers that are put together when Prometheus asks: of jobs, from the database; of students that are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from api.answering import Answering
from limbeck.errors import Unavailable
from models.attempt import OUTCOMES
from models.db import Database
from models.part import TeacherPart
from models.repository import offered, overview


class Jobs(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not ask the database

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("limbeck_database_up", "Whether the database answers; else nothing is told of jobs.")
        try:
            with self._database.reading() as session:
                told = [*_jobs(session), *_workers(session)]
        except Unavailable:  # just now the rest is looked for
            up.add_metric((), 0)
            return [up]
        up.add_metric((), 1)
        return [up, *told]


def _jobs(session: Session) -> Iterator[Metric]:
    yield _by("status", "limbeck_jobs", "Jobs by status.", overview.count_by_status(session).items())
    parts = "Parts of teachers' passes that jobs offer to idle workers, by state."
    yield _by("state", "limbeck_teacher_parts", parts, offered.count(session, TeacherPart).items())
    wait = "Seconds since when the queued job that waits the longest could have begun; 0 where none waits."
    yield GaugeMetricFamily("limbeck_jobs_longest_wait_seconds", wait, overview.longest_wait(session))
    overdue = "Jobs whose worker has let its lease run out, and which nobody has taken over yet."
    yield GaugeMetricFamily("limbeck_jobs_overdue", overdue, overview.count_overdue(session))


def _workers(session: Session) -> Iterator[Metric]:
    held = overview.count_by_worker(session)
    yield GaugeMetricFamily("limbeck_workers", "Workers that are connected.", len(held))
    yield _by("worker", "limbeck_worker_jobs", "Jobs that each connected worker holds.", held.items())
    ended = dict.fromkeys(OUTCOMES, 0) | overview.count_ended_attempts(session)
    yield _by(
        "outcome", "limbeck_attempts_last_hour", "Attempts that ended in the last hour, by outcome.", ended.items()
    )


def _by(label: str, name: str, text: str, counts: Iterable[tuple[str, int]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value, count in counts:
        family.add_metric((value,), count)
    return family


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
