"""``python -m worker``: a Celery worker that hears bells, and a reconciler that needs none."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from celery.worker import WorkController, state
from pydantic import ValidationError

from limbeck.errors import InvalidInput, LimbeckError
from models.db import Database
from models.scratch import make, sweep
from models.settings import Settings, complaint, refuse, unknown_variables
from models.storage import open_storage
from worker import logs
from worker.assistant import ANSWERER
from worker.invitations import require_own_address
from worker.presence import Presence
from worker.queue import Bell, celery_app, require_broker
from worker.reconciler import Reconciler
from worker.runner import TRAINER
from worker.service import Worker
from worker.slots import Slots, find_gpus
from worker.tasks import answer_bells

_log = logging.getLogger("worker")


def main() -> int:
    """0 where it was told to end, 1 where something that it needs is away, 2 where the settings are wrong."""
    try:
        settings = Settings()
        logs.configure(settings)
        for line in unknown_variables(os.environ):
            _log.warning("%s", line)
        require_broker(settings)
        require_own_address(settings)
        return serve(settings)
    except ValidationError as error:
        return refuse(complaint(error))
    except InvalidInput as error:
        return refuse(error.message)
    except LimbeckError as error:
        _log.error("%s", error)
        return 1


def serve(settings: Settings, command: Sequence[str] = TRAINER, answerer: Sequence[str] = ANSWERER) -> int:
    """Work until SIGTERM or SIGINT; ``command`` is the trainer's, ``answerer`` that of the process that helps.

    The first of them makes every job write its checkpoint and hands it back; a second one leaves no time for that.

    Raises:
        Unavailable, Conflict: the database is away, or of another version.
    """
    database = Database(settings)
    if settings.environment == "embedded":
        database.migrate()
    else:  # in production a step of the deployment does it
        database.require_schema()
    assert settings.scratch_dir is not None  # Settings fills it in
    make(settings.scratch_dir)
    sweep(settings.scratch_dir)
    storage = open_storage(settings)
    bell = Bell(settings)
    slots = Slots(settings.slots, find_gpus(os.environ))
    worker = Worker(settings, database, storage, bell, slots, command, answerer)
    reconciler = Reconciler(settings, database, storage, bell, worker)
    presence = Presence(settings, database, worker)
    controller = _controller(settings, worker)
    _stop_on_signals(worker)
    _log.info("worker %s has %d slot(s)", worker.holder.worker, worker.slots.total)
    presence.start()
    reconciler.start()
    # Returns once it was told to stop and the pool's threads, and with them the jobs, have come to their end.
    controller.start()
    worker.stop()
    presence.stop()
    reconciler.stop()
    worker.join()
    bell.close()
    database.dispose()
    _log.info("worker %s has ended", worker.holder.worker)
    return int(controller.exitcode or 0)


def _controller(settings: Settings, worker: Worker) -> WorkController:
    """Celery's worker without its program around it: the signals, the log and the banner are ours."""
    app = celery_app(settings)
    answer_bells(app, worker.drain)
    return app.WorkController(
        hostname=f"limbeck@{worker.holder.worker}",
        pool_cls="threads",
        concurrency=worker.slots.total,
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
    )


def _stop_on_signals(worker: Worker) -> None:
    def stop(number: int, frame: object) -> None:
        worker.stop()
        # Celery's main loop looks at this; it then waits for the pool.
        state.should_stop = 0

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


if __name__ == "__main__":
    sys.exit(main())
