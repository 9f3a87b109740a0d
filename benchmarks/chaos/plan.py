"""What a run does: how many jobs and faults, on which stack, and how long everything is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.settings import Settings

WORKERS = 2
LEASE_SECONDS = 6.0
#: Every so-manieth job is trained by two ranks.
RANKED_EVERY = 3
RANKS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    jobs: int
    faults: int
    broker: Literal["redis", "filesystem"]
    database: Literal["postgres", "sqlite"]
    seed: int = 0
    fence: bool = True  #: off: the negative control
    epochs: int = 8  #: of each job: with the teacher's, 240 steps; some 7 s on a free core, its start included

    @property
    def name(self) -> str:
        return f"{self.broker}-{self.database}{'' if self.fence else '-no-fence'}"

    @property
    def command(self) -> str:
        words = f"--jobs {self.jobs} --faults {self.faults} --broker {self.broker} --database {self.database}"
        return f"python -m benchmarks.chaos {words}{'' if self.fence else ' --no-fence'} --seed {self.seed}"


def settings_for(data_dir: Path, *, broker_url: str, database_url: str) -> Settings:
    """Limits so short that a run of minutes has many of them run out.

    ``max_attempts`` is out of reach: a job here meets more faults within its few seconds than one in the world does in
    its life, and giving one up after its third is as promised, not a loss. So a retry waits for nothing either.
    """
    return Settings(
        data_dir=data_dir,
        broker_url=broker_url,
        database_url=database_url,
        slots=2,
        lease_seconds=LEASE_SECONDS,
        heartbeat_seconds=1.5,
        grace_seconds=10,
        checkpoint_seconds=1,
        reconcile_min_seconds=1,
        reconcile_max_seconds=3,
        max_attempts=100,
        retry_seconds=0,
        hub_offline=True,
    )
