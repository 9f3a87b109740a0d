"""``limbeck serve --workers N``: several serving processes on one port, started, watched and ended together."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from limbeck.errors import Conflict
from models.settings import Settings, complaint, refuse
from worker.supervisor import Child, Supervisor, bind, say


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="limbeck serve")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, required=True)
    given = parser.parse_args(arguments)
    try:
        settings = Settings()
        checked = subprocess.run([sys.executable, "-m", "api.serve", "--check"])  # it says itself what is wrong
        if checked.returncode:
            return checked.returncode
        with bind(given.host, given.port) as listener:
            environment = shared_out(settings, given.workers) | {"PYTHONUNBUFFERED": "1"}
            command = ["api.serve", "--fd", str(listener.fileno())]
            children = [
                Child(f"serve {number + 1}", command, environment, [listener.fileno()])
                for number in range(given.workers)
            ]
            host, port = listener.getsockname()[:2]
            farewell = "stopping: what was asked is answered; Ctrl-C again does not wait for new requests to cease"
            Supervisor(children, (host, port), settings.serve_drain_seconds + settings.grace_seconds, farewell).run()
    except ValidationError as error:
        return refuse(complaint(error))
    except Conflict as error:
        return refuse(error.message)
    say("stopped")
    return 0


def shared_out(settings: Settings, workers: int) -> dict[str, str]:
    """This environment, with a process' share of what the settings allow all of them together."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = {
        "LIMBECK_PREDICT_THREADS": settings.predict_threads or max(1, cores // workers),
        "LIMBECK_PREDICT_MEMORY_BYTES": max(1, settings.predict_memory_bytes // workers),
        "LIMBECK_PREDICT_QUEUE_TEXTS": max(1, settings.predict_queue_texts // workers),
    }
    return {**os.environ, **{name: str(value) for name, value in shares.items()}}


if __name__ == "__main__":
    sys.exit(main())
