"""A training over several devices: the result is that of one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.batches import Collator
from limbeck.criterion import Criterion
from limbeck.draws import drawn
from limbeck.engine import distill
from limbeck.errors import Diverged, InvalidConfig
from limbeck.gradients import Cut, backward
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.ranks import Ranks
from tests.limbeck.bench import TASK, Bench, Recorder
from tests.limbeck.rank_house import House

#: Each job starts two processes that import torch, three times where ranks are killed: minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)


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


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


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


def test_a_run_whose_numbers_break_says_so_once(house: House, tmp_path: Path) -> None:
    """Guards the reason: the ranks that miss the one that failed must not be heard in its place."""
    broken = shutil.copytree(house.sober, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["pooler.dense.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(Diverged, match="At step 1 of teacher the loss became nan"):
        distill(house.config(2, teacher=house.tuned(broken)), tmp_path / "work")


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
