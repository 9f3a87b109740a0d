"""Celery as a bell: a message says that there is work, and nothing else.

A bell may be lost, doubled or late without harm, because the rows say what is to do (``worker/lease.py``).
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.transport import get_transport_cls

from limbeck.errors import InvalidInput
from models.settings import Settings
from worker import filesystem_broker

BELL = "limbeck.bell"

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


def celery_app(settings: Settings) -> Celery:
    """Celery for this broker; every setting is there for a reason."""
    app = Celery("limbeck", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        # The row is claimed by SQL. A bell that comes back after a crash would only ring twice.
        task_acks_late=False,
        task_ignore_result=True,
        task_default_queue="limbeck",
        task_publish_retry=False,
        # A bell that a busy worker has taken is one that an idle worker does not hear.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=_is_redis(settings),
        # Bells are all that goes through the broker: no remote control, no events, no results.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # A broker may be away for as long as it likes, also at the start.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options=_transport_options(settings),
        # Losing the broker must not end the jobs that run.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


class Bell:
    """Rings for whoever is free, from one daemon thread. Several rings on their way are one."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery_app(settings)
        self._wake = threading.Event()
        self._due = False
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: Why the broker did not take the last ring; None while all is well. ``/readyz`` shows it.
        self.fault: str | None = None

    def ring(self) -> None:
        """Say that there is work. Returns at once and never raises; a broker that is away hears it when it is back."""
        self._due = True
        self._wake.set()
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._publish, name="bell", daemon=True)
                self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Stop ringing; a ring on its way gets ``timeout`` seconds."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _publish(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                if self._due:
                    self._due = False
                    self._send()
                pause, self.fault = _FIRST_PAUSE, None
            except Exception as error:  # whatever a broker's client raises, the request path must not see it
                _log.warning("the broker does not take a bell, again in %.1f s: %s", pause, error)
                self.fault = str(error) or type(error).__name__
                self._due = True
                self._wake.set()
                self._closing.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            if self._closing.is_set():
                return

    def _send(self) -> None:
        # A connection of its own: one from a pool may be dead since the broker was restarted.
        with self._app.connection_for_write() as connection:
            self._app.send_task(BELL, connection=connection, retry=False)


def require_broker(settings: Settings) -> None:
    """For everything that starts servers, before it does: a worker without a broker's client ends at its start.

    Raises:
        InvalidInput: there is no client for such an address here.
    """
    scheme, found, _ = settings.broker_url.partition("://")
    if scheme == filesystem_broker.SCHEME:
        return
    try:
        if not found:
            raise KeyError(scheme)
        get_transport_cls(scheme.partition("+")[0])  # redis+socket: what follows is how it is reached
    except (KeyError, ImportError) as error:  # the address itself may hold a password
        given = f"begins with '{scheme}://'" if found else "has no '://'"
        raise InvalidInput(
            f"LIMBECK_BROKER_URL {given}, and no broker is spoken to like that here; allowed: redis://host:6379/0, "
            "rediss://…, or nothing for the embedded one"
        ) from error


def _is_redis(settings: Settings) -> bool:
    return settings.broker_url.startswith(("redis", "sentinel"))


def _transport_options(settings: Settings) -> dict[str, Any]:
    scheme, _, place = settings.broker_url.partition("://")
    if scheme == filesystem_broker.SCHEME:
        filesystem_broker.register()
        return filesystem_broker.transport_options(Path(place))
    if _is_redis(settings):
        # The timeouts end a worker's wait for a Redis that went silent without closing its connections.
        return {
            "visibility_timeout": 86_400,
            "socket_timeout": 30,
            "socket_connect_timeout": 2,
            "health_check_interval": 15,
        }
    return {}
