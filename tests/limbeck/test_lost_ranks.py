"""No rank's end, and no stop, loses or leaves anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from limbeck import launching
from limbeck.callbacks import Progress
from limbeck.checkpoint import CheckpointStore
from limbeck.engine import distill
from limbeck.errors import Interrupted, RankLost
from limbeck.result import DistillResult
from tests.limbeck.bench import Recorder
from tests.limbeck.rank_house import House

#: Each job starts two processes that import torch, three times where ranks are killed: minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def ranks_of(pid: int) -> dict[int, psutil.Process]:
    """The ranks below a process, by their number."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        words = process.cmdline()
        if "limbeck.rank_process" in words:
            found[int(words[words.index("limbeck.rank_process") + 1])] = process
    return found


#: Long enough that ranks are still at it when what they told at its beginning is heard.
LONG = {"epochs": 10}
#: Of the fixture's teacher, 4 epochs of 8 steps.
TEACHER_STEPS = 32


class Killer(Recorder):
    """Kills these ranks of this process, one each time that the student's training is begun or gone on with."""

    def __init__(self, victims: Sequence[int]) -> None:
        super().__init__()
        self.victims = list(victims)
        self.due = False

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        super().on_event(kind, message, data)
        self.due = self.due or kind == "ranks.met"

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().on_metrics(step, values)
        if self.due and self.victims and "distilling/loss" in values:
            self.due = False
            ranks_of(os.getpid())[self.victims.pop(0)].kill()


@pytest.fixture(scope="module")
def undisturbed(house: House, tmp_path_factory: pytest.TempPathFactory) -> DistillResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return distill(house.config(2, training=LONG), tmp_path_factory.mktemp("undisturbed"))


def assert_same_student(found: DistillResult, expected: DistillResult) -> None:
    one, other = (load_file(result.student / "model.safetensors") for result in (found, expected))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert found.scorecard.student.metrics == expected.scorecard.student.metrics


def test_lost_ranks_are_started_again_and_change_nothing(
    house: House, undisturbed: DistillResult, tmp_path: Path
) -> None:
    """Guards against a job that hangs when a rank is killed, or goes on from other draws; dropout is on."""
    said = Killer([1, 0])
    result = distill(house.config(2, training=LONG), tmp_path, callbacks=said, checkpoint_seconds=0.05)
    lost = [message for kind, message, _ in said.events if kind == "rank.lost"]
    assert [one.split(".")[0] for one in lost] == [
        "Rank 1 of 2 was killed from outside (SIGKILL)",
        "Rank 0 of 2 was killed from outside (SIGKILL)",
    ]
    assert "checkpoint.loaded" in [kind for kind, _, _ in said.events]
    assert_same_student(result, undisturbed)
    assert ranks_of(os.getpid()) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "state"]


def test_a_rank_that_is_lost_again_and_again_ends_the_run(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Guards against an endless loop where, say, memory runs out each time."""
    monkeypatch.setattr(launching, "RESTARTS", 1)  # each is two processes that import torch

    class Executioner(Recorder):
        def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
            super().on_event(kind, message, data)
            if kind == "ranks.met":
                ranks_of(os.getpid())[1].send_signal(signal.SIGSEGV)

    said = Executioner()
    with pytest.raises(RankLost, match=r"Rank 1 of 2 crashed \(SIGSEGV\)"):
        distill(house.config(2), tmp_path, callbacks=said)
    assert [kind for kind, _, _ in said.events].count("rank.lost") == 1
    assert ranks_of(os.getpid()) == {}


def test_a_stopped_run_goes_on_with_as_many_ranks_or_others(
    house: House, undisturbed: DistillResult, tmp_path: Path
) -> None:
    """Guards the checkpoint, which holds nothing of the other ranks: the same number ends bit-equal, and another number
    does the steps that are left."""

    class Stopper(Recorder):
        def should_stop(self) -> bool:
            return any("distilling/loss" in values and step >= 20 for step, values in self.points)

    with pytest.raises(Interrupted):
        distill(house.config(2, training=LONG), tmp_path / "two", callbacks=(stopped := Stopper()))
    assert ranks_of(os.getpid()) == {}
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    assert_same_student(distill(house.config(2, training=LONG), tmp_path / "two"), undisturbed)
    alone = Recorder()
    distill(house.config(1, training=LONG), tmp_path / "one", callbacks=alone)
    steps = [step for step, values in alone.points if "distilling/loss" in values]
    last = max(step for step, values in stopped.points if "distilling/loss" in values)
    assert steps == list(range(last + 1, TEACHER_STEPS + 80 + 1))


class Impatient(Recorder):
    """Stops rank 1 on its way to the others, and then wants a stop."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[psutil.Process] = []

    def should_stop(self) -> bool:
        if not self.seen and len(ranks := ranks_of(os.getpid())) == 2:
            ranks[1].suspend()
            self.seen = list(ranks.values())
        return bool(self.seen)


@pytest.mark.timeout(120)
def test_a_stop_is_heard_while_ranks_still_start(house: House, tmp_path: Path) -> None:
    """Guards against a cancel that waits for a rank which hangs on its way to the others, and against ranks that are
    left behind by it."""
    said = Impatient()
    with pytest.raises(Interrupted, match="before its ranks had met"):
        distill(house.config(2), tmp_path, callbacks=said)
    assert ranks_of(os.getpid()) == {}
    assert not any(process.is_running() for process in said.seen)
    assert "ranks.met" not in [kind for kind, _, _ in said.events]


class Stopped(Recorder):
    """Stops rank 1 in the student's training, notes what still says that the run gets on, and after a while ends it."""

    ASKED = 30  #: times by the launcher, a tenth of a second apart

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.waited: int | None = None  #: how often since rank 1 stands still
        self.last_sign = 0

    def on_alive(self) -> None:
        self.alive += 1
        self.last_sign = self.waited or 0

    def on_progress(self, progress: Progress) -> None:
        super().on_progress(progress)
        self.last_sign = self.waited or 0

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().on_metrics(step, values)
        self.last_sign = self.waited or 0
        if self.waited is None and "distilling/loss" in values:
            self.waited = 0
            ranks_of(os.getpid())[1].suspend()

    def should_stop(self) -> bool:
        if self.waited is None:
            return False
        self.waited += 1
        if self.waited == self.ASKED:
            ranks_of(os.getpid())[1].kill()
        return self.waited >= self.ASKED


def test_a_rank_that_stands_still_is_not_told_as_alive(house: House, tmp_path: Path) -> None:
    """Guards what ends a hanging job: the launcher lives on and asks, and that must not count as getting on."""
    said = Stopped()
    with pytest.raises(Interrupted):
        distill(house.config(2, training=LONG), tmp_path, callbacks=said)
    assert said.alive > 0
    assert said.last_sign < Stopped.ASKED // 2


class Terminated(Recorder):
    """Sends SIGTERM to all ranks in the student's training, as to a whole group of processes, and then wants a stop."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_at: int | None = None
        self.temporary: list[Path] = []

    def on_metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self.sent_at is None and "distilling/loss" in values:
            self.sent_at = step
            for rank in ranks_of(os.getpid()).values():
                self.temporary.append(Path(rank.environ()["TMPDIR"]))
                (self.temporary[-1] / "left behind").touch()
                rank.send_signal(signal.SIGTERM)

    def should_stop(self) -> bool:
        return self.sent_at is not None


def test_a_signal_to_all_processes_loses_no_step(house: House, tmp_path: Path) -> None:
    """Guards against ranks that are dead before they can save, and temporary files that outlive them."""
    said = Terminated()
    with pytest.raises(Interrupted, match="its state is saved"):
        distill(house.config(2, training=LONG), tmp_path, callbacks=said)
    assert said.sent_at is not None
    assert CheckpointStore(tmp_path / "state").step >= said.sent_at > TEACHER_STEPS
    assert len(said.temporary) == 2
    assert not any(folder.exists() for folder in said.temporary)


def test_no_rank_outlives_its_launcher(house: House, tmp_path: Path) -> None:
    """Guards against ranks that go on training when the process that started them is killed."""
    script = """
import sys
from pathlib import Path
from limbeck.callbacks import Callbacks
from limbeck.config import DistillConfig
from limbeck.engine import distill
class Told(Callbacks):
    def on_event(self, kind, message, data):
        print(kind, flush=True)
folder = Path(sys.argv[1])
distill(DistillConfig.model_validate_json((folder / "config.json").read_text()), folder / "work", callbacks=Told())
"""
    config = house.config(2, training={"epochs": 200})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert next(iter(process.stdout)) == "ranks.met\n"
        ranks = list(ranks_of(process.pid).values())
        assert len(ranks) == 2
        process.kill()
        gone, alive = psutil.wait_procs(ranks, timeout=10)
        assert not alive
        assert len(gone) == 2
    finally:
        process.kill()
        process.communicate()
