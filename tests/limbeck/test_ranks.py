"""A training over several devices: the result is that of one, and no rank's end loses or leaves anything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck import launching
from limbeck.batches import Collator
from limbeck.callbacks import Progress
from limbeck.checkpoint import CheckpointStore
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.draws import drawn
from limbeck.engine import distill
from limbeck.errors import Diverged, Interrupted, InvalidConfig, RankLost
from limbeck.gradients import Cut, backward
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.ranks import Ranks
from limbeck.result import DistillResult
from tests.limbeck.bench import TASK, Bench, Recorder
from tests.tiny import write_tiny_bert, write_tiny_dataset

#: Each job starts two processes that import torch, three times where ranks are killed: minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)
LABELS = ("gui", "networking")
#: A multiple of neither the batch size nor the number of ranks: the last batch has an example for one rank alone.
ROWS = 85


class Part(Ranks):
    """One of several ranks, computed in this process: gradients of all of them add up in the module by themselves."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count = number, count

    def sum_gradients(self, parameters: Any) -> None:
        return None


@pytest.mark.parametrize("rows", [[0, 11, 5, 14, 2, 9, 7, 3], [4]], ids=["a whole batch", "fewer examples than ranks"])
def test_the_gradients_of_all_ranks_sum_to_that_of_one(bench: Bench, tmp_path: Path, rows: list[int]) -> None:
    """Guards against a mean of means, and against a rank without examples that counts those of another."""
    objective = KnowledgeDistillation().build(KnowledgeDistillation().parts()[0], bench.phase().models, Criterion(TASK))
    objective.module.eval()
    collate = Collator(bench.train, 0, torch.device("cpu"), torch.zeros(len(bench.train), 3))
    found = []
    for count in (1, 2, 3):
        objective.module.zero_grad()
        losses = []
        for number in range(count):
            run = bench.run(tmp_path / f"{number}-of-{count}", bench.phase())
            run.ranks = Part(number, count)
            losses.append(backward(objective, collate, np.array(rows), Cut(), 0, 1, run)["loss"])
        gradients = {name: p.grad.clone() for name, p in objective.module.named_parameters() if p.grad is not None}
        found.append(gradients | {"loss": torch.stack(losses).sum()})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-7, msg=name)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def test_draws_belong_to_the_example_and_not_to_its_batch() -> None:
    """Guards against words that are masked otherwise on another rank, and against streams that repeat each other."""
    places = np.arange(400)
    whole = drawn(places, 30, 3, seed=1, step=5)
    assert np.array_equal(drawn(places[100:120], 40, 3, seed=1, step=5)[:, :, :30], whole[:, 100:120])
    assert whole.mean() == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(whole)) == whole.size
    others = [drawn(places, 30, 3, seed=1, step=6), drawn(places, 30, 3, seed=2, step=5)]
    for other in [*others, np.roll(whole, 1, axis=1), np.roll(whole, 1, axis=2), np.roll(whole, 1, axis=0)]:
        assert abs(np.corrcoef(whole.ravel(), other.ravel())[0, 1]) < 0.02


class House:
    """A tiny teacher and its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = write_tiny_bert(folder / "teacher")
        #: Without dropout, which every rank draws for itself.
        self.sober, self.other = (self._sober(folder / f"sober-{seed}", seed) for seed in (0, 1))
        self.data = write_tiny_dataset(folder / "data", rows=ROWS, labels=LABELS)

    @staticmethod
    def _sober(folder: Path, seed: int) -> Path:
        file = write_tiny_bert(folder, seed=seed) / "config.json"
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | off))
        return folder

    @staticmethod
    def tuned(teacher: Path) -> dict[str, Any]:
        return {"source": f"path:{teacher}", "finetune": {"epochs": 4, "learning_rate": 3e-3}}

    def config(
        self, devices: int, *, training: Mapping[str, Any] = MappingProxyType({}), **changes: Any
    ) -> DistillConfig:
        document = {
            "teacher": self.tuned(self.teacher),
            "dataset": f"path:{self.data}",
            "student": 2,
            "method": "kd",
            "training": {"epochs": 2, "batch_size": 12, "learning_rate": 3e-3, "max_length": 32, "devices": devices}
            | dict(training),
            "evaluation": {"baseline": False, "hard_samples": False},
            "export": [],
        }
        return DistillConfig.parse(document | changes)


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


@pytest.mark.parametrize(
    ("method", "training", "several"),
    [
        ("kd", {"sample_weighting": "focal", "batch_size": 24}, True),
        ("theseus", {"gradient_accumulation": 2}, False),
        ("patient", {"batch_size": 24}, False),
        ("fastbert", {}, False),
        ("distilbert", {"sample_weighting": "curriculum", "gradient_accumulation": "auto"}, False),
    ],
    ids=[
        "weights by the student, two teachers",
        "theseus",
        "kept states",
        "branches that are drawn in mid-training",
        "masked words, weights by the teacher, parts by a probe",
    ],
)
def test_two_ranks_learn_what_one_does(
    house: House, tmp_path: Path, method: str, training: Mapping[str, Any], several: bool
) -> None:
    """Guards each share of a batch, of the teacher's as of the student's: of examples, of weights with mean 1, of draws
    that all ranks have to share. And exchanges that not all ranks take part in, which hang."""
    told = {}
    teacher = house.tuned(house.sober) | ({"more": [house.tuned(house.other)]} if several else {})
    for devices in (1, 2):
        said = Recorder()
        config = house.config(devices, training=training, method=method, teacher=teacher)
        distill(config, tmp_path / f"by {devices}", callbacks=said)  # a folder's name may have a space in it
        told[devices] = said
    assert len(told[1].points) > 16
    assert [step for step, _ in told[2].points] == [step for step, _ in told[1].points]
    for (step, found), (_, expected) in zip(told[2].points, told[1].points, strict=True):
        assert found == pytest.approx(expected, rel=5e-3, abs=1e-5), step
    assert told[2].stages == told[1].stages
    probed = {sum(kind == "batch.probed" for kind, _, _ in said.events) for said in told.values()}
    assert probed == {2 if training.get("gradient_accumulation") == "auto" else 0}


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


def test_a_run_whose_numbers_break_says_so_once(house: House, tmp_path: Path) -> None:
    """Guards the reason: the ranks that miss the one that failed must not be heard in its place."""
    broken = shutil.copytree(house.sober, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["pooler.dense.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(Diverged, match="At step 1 of teacher the loss became nan"):
        distill(house.config(2, teacher=house.tuned(broken)), tmp_path / "work")


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


def test_the_launcher_needs_no_torch() -> None:
    """Guards the memory of a trainer whose ranks do the work."""
    code = "import sys, limbeck.launching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("training", "detail"),
    [
        ({"devices": 5}, "devices (5) times gradient_accumulation (1) has to divide batch_size (12)"),
        (
            {"devices": 2, "gradient_accumulation": 4},
            "devices (2) times gradient_accumulation (4) has to divide batch_size (12)",
        ),
        ({"devices": 2, "loss": {"type": "dist", "intra": 1.0}}, "devices (2) has to be 1 with loss 'dist'"),
        ({"devices": 65}, "less than or equal to 64"),
        ({"devices": 6, "hosts": 4}, "it has to divide devices (6); allowed: 1, 2, 3, 6; found 4"),
    ],
)
def test_devices_that_cannot_share_a_batch_are_refused(house: House, training: dict[str, Any], detail: str) -> None:
    """Guards against a job that another gradient, or an empty rank, would spoil unsaid."""
    with pytest.raises(InvalidConfig) as refused:
        house.config(1, training=training)
    assert detail in refused.value.problems[0].detail
    assert refused.value.problems[0].pointer == "/training" + "/hosts" * ("hosts" in training) + (
        "/devices" if training["devices"] == 65 else ""
    )


def test_a_plain_call_finds_no_other_hosts(house: House, tmp_path: Path) -> None:
    """Guards against a notebook that waits for workers which nobody can find."""
    with pytest.raises(InvalidConfig) as refused:
        distill(house.config(4, training={"hosts": 2}), tmp_path / "work")
    (problem,) = refused.value.problems
    assert problem.pointer == "/training/hosts"
    assert problem.detail.startswith("found 2; workers that lend their devices are found by the service alone")
    assert not (tmp_path / "work").exists()
