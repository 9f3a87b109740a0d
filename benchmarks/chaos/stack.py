"""The stack under fire: servers on free loopback ports, one API and two workers, each a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.chaos.plan import WORKERS, Plan, settings_for
from models.db import Database
from models.settings import Settings
from tests.services import Postgres, Redis, free_port

ROOT = Path(__file__).parents[2]
#: In the environment of every process of a run, and of what they start: whoever has it at the end is an orphan.
MARK = "CHAOS_RUN"
_END_SECONDS = 40.0
_RANK = "limbeck.rank_process"


class Program:
    """A process of the stack. It dies with the benchmark; all are started from the benchmark's one main thread."""

    def __init__(self, name: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.stopped = False
        self.ending = False  #: it was told to end
        self._command = [sys.executable, "-m", "worker.death", str(os.getpid()), *arguments]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 while it is down."""
        return self._process.pid if self._process is not None else 0

    @property
    def up(self) -> bool:
        """It runs, and is neither stopped nor told to end."""
        running = self._process is not None and self._process.poll() is None
        return running and not self.stopped and not self.ending

    @property
    def fell(self) -> bool:
        """It ended otherwise than by ``kill``."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        self.ending = False
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def signal(self, how: signal.Signals) -> None:
        assert self._process is not None
        self.stopped = how is signal.SIGSTOP
        with suppress(ProcessLookupError):
            self._process.send_signal(how)

    def kill(self) -> None:
        """``kill -9``, of this process alone."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def wait(self, seconds: float) -> None:
        """Take note of its end.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        if self._process is not None:
            self._process.wait(seconds)
            self._process = None

    def trainers(self) -> list[psutil.Process]:
        """The training processes that it has started, one for each attempt."""
        return [one for one in self._below() if is_trainer(one)]

    def ranks(self) -> list[psutil.Process]:
        """The processes that those have started, where a job has several devices."""
        return [one for one in self._below() if rank_number(one) is not None]

    def _below(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


class Stack:
    """Everything that a run starts."""

    def __init__(self, plan: Plan, folder: Path, redis: Redis | None, postgres: Postgres | None) -> None:
        self.plan = plan
        self.folder = folder
        self.redis = redis
        self.postgres = postgres
        self.mark = uuid.uuid4().hex
        data_dir = folder / "data"
        self.settings = settings_for(
            data_dir,
            broker_url=redis.url if redis else f"limbeck-filesystem://{data_dir / 'broker'}",
            database_url=postgres.new_database() if postgres else f"sqlite:///{data_dir / 'limbeck.db'}",
        )
        data_dir.mkdir(parents=True)
        self.database = Database(self.settings)
        self.database.migrate()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = _environment(self.settings, self.mark)
        worker = "worker" if plan.fence else "benchmarks.chaos.unfenced_worker"
        self.api = Program("api", ["api", "--port", str(port)], environment, folder / "api.log")
        self.workers = [
            Program(f"worker {n}", [worker], environment, folder / f"worker{n}.log") for n in range(1, WORKERS + 1)
        ]

    @property
    def programs(self) -> list[Program]:
        return [self.api, *self.workers]

    def trainers(self) -> list[psutil.Process]:
        return [one for worker in self.workers for one in worker.trainers()]

    def ranks(self) -> list[psutil.Process]:
        return [one for worker in self.workers for one in worker.ranks()]

    def shut_down(self) -> None:
        """End all in order, as an operator does."""
        for program in self.programs:
            if program.stopped:
                program.signal(signal.SIGCONT)
            with suppress(AssertionError):
                program.signal(signal.SIGTERM)
        for program in self.programs:
            program.wait(_END_SECONDS)

    def leftovers(self) -> list[psutil.Process]:
        """Processes of this run that are still there, also those that nobody knows any more."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@contextmanager
def running(plan: Plan, folder: Path) -> Iterator[Stack]:
    """The stack, started; whatever happens, nothing of it is left afterwards.

    Raises:
        tests.services.ServiceMissing: the machine has no such server.
    """
    redis = Redis() if plan.broker == "redis" else None
    postgres = Postgres() if plan.database == "postgres" else None
    servers = [server for server in (redis, postgres) if server is not None]
    stack = None
    try:
        for server in servers:
            server.start()
        stack = Stack(plan, folder, redis, postgres)
        for program in stack.programs:
            program.start()
        yield stack
    finally:
        if stack is not None:
            for process in stack.leftovers():
                with suppress(psutil.Error):
                    process.kill()
            stack.database.dispose()
        for server in servers:
            server.stop()


def is_trainer(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "worker.trainer" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    return False


def rank_number(process: psutil.Process) -> int | None:
    """Which rank of a job this process is; None: it is none."""
    with suppress(psutil.Error, ValueError, IndexError):
        words = process.cmdline()
        if process.status() != psutil.STATUS_ZOMBIE:
            return int(words[words.index(_RANK) + 1])
    return None


def _environment(settings: Settings, mark: str) -> dict[str, str]:
    values = settings.model_dump(mode="json", exclude_none=True)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
    ours |= {f"LIMBECK_{name.upper()}": str(value) for name, value in values.items()}
    # Tiny models gain nothing from a second thread, and a GPU would decide the number of slots.
    return ours | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: mark}
