"""What is done to the stack. Each fault says whether it could be done; what undoes it comes later by itself."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from kombu.exceptions import OperationalError

from benchmarks.chaos.plan import LEASE_SECONDS, Plan
from benchmarks.chaos.stack import Program, Stack, rank_number
from limbeck.errors import Unavailable
from models.job import Job
from worker.queue import BELL, celery_app

_QUEUE = "limbeck"
_ORPHAN_SECONDS = 2.0
_END_SECONDS = 30.0
#: How often each comes in a deck of cards, and on which stacks.
_EVERYWHERE = {
    "worker_killed": 3,
    "trainer_killed": 3,
    "first_rank_killed": 1,
    "other_rank_killed": 1,
    "worker_stopped": 3,
    "api_killed": 2,
    "worker_ended": 1,
    "bells_dropped": 1,
    "bells_doubled": 1,
    "clock_forward": 2,
    "clock_back": 1,
}
_BY_STACK = {
    "redis": {"redis_flushed": 1, "redis_killed": 1},
    "filesystem": {"broker_emptied": 1},
    "postgres": {"postgres_restarted": 2},
    "sqlite": {"database_locked": 2},
}
#: What each is, for the page.
MEANING = {
    "worker_killed": "`kill -9` of a worker that trains; started again within 3 s",
    "trainer_killed": "`kill -9` of the process that trains; of a job with several ranks, of the one that started them",
    "first_rank_killed": "`kill -9` of rank 0 of a job with two, which writes its checkpoints",
    "other_rank_killed": "`kill -9` of the other one",
    "worker_stopped": "`SIGSTOP` of a worker, `SIGCONT` 1–4 s after its lease ran out",
    "worker_ended": "`SIGTERM` to a worker, as a deployment does; started again",
    "api_killed": "`kill -9` of the API; started again within 2 s",
    "bells_dropped": "for 3 s every message in the broker is thrown away",
    "bells_doubled": "each message that waits is there twice, and three more come",
    "redis_flushed": "`FLUSHALL`",
    "redis_killed": "`kill -9` of Redis, which has nothing on disk; started again within 4 s",
    "broker_emptied": "every file of the file-system broker is deleted, queues' bindings too",
    "postgres_restarted": "PostgreSQL shut down in `immediate` mode; started again within 3 s",
    "database_locked": "another process holds SQLite's write lock for 3–8 s",
    "clock_forward": "the database's clock 30 s ahead: every lease is over at once",
    "clock_back": "the database's clock 8 s back: every lease lasts longer",
}


def draw(plan: Plan, chance: random.Random) -> list[str]:
    """The run's faults in their order; among any twenty each kind that the stack knows comes at least once."""
    known = _EVERYWHERE | _BY_STACK[plan.broker] | _BY_STACK[plan.database]
    drawn: list[str] = []
    while len(drawn) < plan.faults:
        deck = [kind for kind, count in known.items() for _ in range(count)]
        chance.shuffle(deck)
        drawn += deck
    return drawn[: plan.faults]


@dataclass(slots=True)
class Outage:
    """A time in which no checkpoint could be committed, by the clock of the machine, in seconds."""

    begin: float
    end: float = math.inf
    pid: int | None = None  #: of the worker that stood still; None: all workers, as the database was away

    def overlap(self, begin: float, end: float, pid: int | None) -> float:
        """Seconds of the span from ``begin`` to ``end``, of a worker's work, that lie within the outage."""
        if self.pid not in (None, pid):
            return 0.0
        return max(0.0, min(end, self.end) - max(begin, self.begin))


class Faults:
    """Does them, and what has to follow each; ``tick`` often, from the thread that starts the processes."""

    def __init__(self, stack: Stack, chance: random.Random) -> None:
        self._stack = stack
        self._chance = chance
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._dropping_until = 0.0
        self._locked = False
        #: How often each kind was done.
        self.done: Counter[str] = Counter()
        #: Messages of the broker that were thrown away.
        self.dropped = 0
        #: Training processes that outlived the worker that was killed.
        self.orphans = 0
        #: Processes of the stack that ended by themselves, and were started again as the supervisor does.
        self.fell: Counter[str] = Counter()
        #: The database was locked or down, or a worker stood still.
        self.outages: list[Outage] = []

    @property
    def pending(self) -> bool:
        """Something is still down, stopped or locked."""
        return bool(self._later) or any(program.ending for program in self._stack.programs)

    def do(self, kind: str) -> bool:
        """Do it now, where the stack is in a state to have it done."""
        happened: bool = getattr(self, f"_{kind}")()
        self.done[kind] += happened
        return happened

    def tick(self) -> None:
        """Do what is due, and start what fell."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        if time.monotonic() < self._dropping_until:
            self.dropped += self._empty_queue()
        for program in self._stack.programs:
            if program.fell:
                program.wait(1)
                if not program.ending:
                    self.fell[program.name] += 1
                self._in(0.5, program.start)

    def _outage(self, undo: Callable[[], None], pid: int | None = None) -> Callable[[], None]:
        """An outage begins now; ``undo``, and its end, are what is returned."""
        outage = Outage(time.time(), pid=pid)
        self.outages.append(outage)

        def end() -> None:
            undo()
            outage.end = time.time()

        return end

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), action))

    def _worker(self, *, training: bool = True) -> Program | None:
        able = [worker for worker in self._stack.workers if worker.up and (worker.trainers() or not training)]
        return self._chance.choice(able) if able else None

    def _worker_killed(self) -> bool:
        worker = self._worker()
        if worker is None:
            return False
        below = worker.trainers() + worker.ranks()
        worker.kill()
        self._in(_ORPHAN_SECONDS, lambda: self._count_orphans(below))
        self._in(self._chance.uniform(0, 3), worker.start)
        return True

    def _count_orphans(self, below: list[psutil.Process]) -> None:
        for process in below:
            with suppress(psutil.NoSuchProcess):
                self.orphans += process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    def _trainer_killed(self) -> bool:
        trainers = self._stack.trainers()
        if not trainers:
            return False
        trainer = self._chance.choice(trainers)
        with suppress(psutil.NoSuchProcess):
            below = trainer.children()
            trainer.kill()
            self._in(_ORPHAN_SECONDS, lambda: self._count_orphans(below))
        return True

    def _first_rank_killed(self) -> bool:
        return self._rank_killed(lambda number: number == 0)

    def _other_rank_killed(self) -> bool:
        return self._rank_killed(lambda number: number > 0)

    def _rank_killed(self, which: Callable[[int], bool]) -> bool:
        ranks = [one for one in self._stack.ranks() if (number := rank_number(one)) is not None and which(number)]
        if not ranks:
            return False
        with suppress(psutil.NoSuchProcess):
            self._chance.choice(ranks).kill()
            return True
        return False

    def _worker_stopped(self) -> bool:
        worker = self._worker()
        if worker is None:
            return False
        worker.signal(signal.SIGSTOP)
        go_on = self._outage(lambda: worker.signal(signal.SIGCONT), worker.pid)
        self._in(LEASE_SECONDS + self._chance.uniform(1, 4), go_on)
        return True

    def _worker_ended(self) -> bool:
        worker = self._worker()
        if worker is None:
            return False
        worker.signal(signal.SIGTERM)
        worker.ending = True
        # Like systemd and Kubernetes: who has not ended in time is killed.
        pid = worker.pid
        self._in(_END_SECONDS, lambda: self._kill_if_still(worker, pid))
        return True

    def _kill_if_still(self, worker: Program, pid: int) -> None:
        if worker.ending and worker.pid == pid:
            worker.kill()
            worker.start()

    def _api_killed(self) -> bool:
        if not self._stack.api.up:
            return False
        self._stack.api.kill()
        self._in(self._chance.uniform(0, 2), self._stack.api.start)
        return True

    def _bells_dropped(self) -> bool:
        self._dropping_until = time.monotonic() + 3
        self._in(3, lambda: None)
        return True

    def _bells_doubled(self) -> bool:
        app = celery_app(self._stack.settings)
        try:
            self._double_queue()
            with app.connection_for_write() as connection:
                for _ in range(3):
                    app.send_task(BELL, connection=connection, retry=False)
        except (OperationalError, redis.RedisError, OSError):  # it is down at the moment
            return False
        return True

    def _double_queue(self) -> None:
        if self._stack.redis is not None:
            with redis.Redis.from_url(self._stack.redis.url, socket_timeout=2) as client:
                for message in client.lrange(_QUEUE, 0, -1):
                    client.rpush(_QUEUE, _with_new_tag(message))
            return
        for message in self._messages():
            with suppress(FileNotFoundError):  # a worker has it meanwhile
                shutil.copy(message, message.with_name(f"0{message.name}"))

    def _empty_queue(self) -> int:
        if self._stack.redis is None:
            messages = self._messages()
            for message in messages:
                message.unlink(missing_ok=True)
            return len(messages)
        with (
            suppress(redis.RedisError),
            redis.Redis.from_url(self._stack.redis.url, socket_timeout=2) as client,
        ):
            waiting = int(client.llen(_QUEUE))
            client.delete(_QUEUE)
            return waiting
        return 0

    def _messages(self) -> list[Path]:
        return list((self._stack.settings.data_dir / "broker" / "messages").glob("*.msg"))

    def _redis_flushed(self) -> bool:
        assert self._stack.redis is not None
        try:
            with redis.Redis.from_url(self._stack.redis.url, socket_timeout=2) as client:
                client.flushall()
        except redis.RedisError:
            return False
        return True

    def _redis_killed(self) -> bool:
        server = self._stack.redis
        assert server is not None
        if not server.up:
            return False
        server.kill()
        self._in(self._chance.uniform(1, 4), server.start)
        return True

    def _broker_emptied(self) -> bool:
        for folder in ("messages", "bindings"):
            for file in (self._stack.settings.data_dir / "broker" / folder).iterdir():
                with suppress(FileNotFoundError):
                    file.unlink()
        return True

    def _postgres_restarted(self) -> bool:
        server = self._stack.postgres
        assert server is not None
        if not server.up:
            return False
        server.kill()
        self._in(self._chance.uniform(0.5, 3), self._outage(server.start))
        return True

    def _database_locked(self) -> bool:
        if self._locked:
            return False
        path = self._stack.settings.database_url.removeprefix("sqlite:///")
        connection = sqlite3.connect(path, timeout=5, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # a stopped worker has it
            connection.close()
            return False
        self._locked = True

        def let_go() -> None:
            connection.close()
            self._locked = False

        self._in(self._chance.uniform(3, 8), self._outage(let_go))
        return True

    def _clock_forward(self) -> bool:
        return self._move_leases(-30_000)

    def _clock_back(self) -> bool:
        return self._move_leases(8_000)

    def _move_leases(self, milliseconds: int) -> bool:
        """A lease is judged by the database's clock alone: to jump with it, or to move every lease, is the same."""
        if self._locked:
            return False
        column = Job.lease_expires_at.key
        try:
            with self._stack.database.session() as session:
                session.connection().exec_driver_sql(
                    f"UPDATE jobs SET {column} = {column} + ({milliseconds}) WHERE {column} IS NOT NULL"
                )
        except Unavailable:
            return False
        return True


def _with_new_tag(message: bytes) -> bytes:
    """The same message as another delivery: kombu knows deliveries by their tag."""
    document = json.loads(message)
    document["properties"]["delivery_tag"] += "-again"
    return json.dumps(document).encode()
