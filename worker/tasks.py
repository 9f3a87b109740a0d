"""Celery's side of the worker: one task, the bell."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from worker.queue import BELL


def answer_bells(app: Celery, drain: Callable[[], None]) -> None:
    """At each bell, run ``drain`` in a thread of the pool: it takes due jobs until there are none."""

    @app.task(name=BELL)  # type: ignore[untyped-decorator]
    def bell() -> None:
        drain()
