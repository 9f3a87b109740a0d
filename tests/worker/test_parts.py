"""The worker's small parts: slots, telemetry, faults."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path, PosixPath

import pytest

from models.repository.settling import Fault
from models.repository.telemetry import Point
from worker.faults import fault_of
from worker.slots import Slots, find_gpus
from worker.telemetry import MAX_EVENTS, MAX_POINTS, Batch, Note, Telemetry
from worker.trainer import EXIT_ERROR, EXIT_LEASE_OVER, Pipe, train


def code(fault: Fault) -> tuple[str, bool]:
    return fault.code, fault.retryable


@pytest.mark.parametrize(
    ("exit_code", "oom_killed", "expected"),
    [
        (-signal.SIGKILL, True, "out_of_memory"),
        (-signal.SIGKILL, False, "killed"),
        (-signal.SIGTERM, False, "killed"),
        (-signal.SIGSEGV, True, "crashed"),
        (-signal.SIGABRT, False, "crashed"),
        (0, False, "crashed"),
        (9, False, "crashed"),
        (EXIT_LEASE_OVER, False, "worker_lost"),
    ],
)
def test_the_end_of_a_process_has_a_code(exit_code: int, oom_killed: bool, expected: str) -> None:
    assert code(fault_of(exit_code, oom_killed=oom_killed)) == (expected, True)


class FullDisk(PosixPath):
    """A folder on a disk that takes no more."""

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))


def test_a_full_disk_is_named_before_the_ranks_begin(tmp_path: Path) -> None:
    """Guards the checkpoint: taken for a fault of Limbeck's own, a disk that was full for a moment failed the job for
    good, and what it had learned was deleted."""
    config = {"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings", "training": {"devices": 2}}
    order = {"config": config, "sources": {}, "checkpoint_seconds": 60, "expected": {}, "micro_batches": {}}
    lines, theirs = os.pipe()
    try:
        assert train(FullDisk(tmp_path), order, Pipe(theirs)) == EXIT_ERROR
        said = json.loads(os.read(lines, 65_536))
    finally:
        os.close(lines)
        os.close(theirs)
    assert (said["type"], said["code"], said["retryable"]) == ("error", "storage_full", True)


def test_each_slot_has_a_gpu_of_its_own() -> None:
    """Guards against two jobs on one GPU."""
    slots = Slots(1, ["GPU-a", "GPU-b", "GPU-c"])
    with slots.take(lambda gpus: gpus, lambda _: 1) as first, slots.take(lambda gpus: gpus, lambda _: 2) as second:
        assert first is not None
        assert second is not None
        assert (first[0], second[0], slots.free) == (3, 2, 0)
        assert {*first[1].gpus, *second[1].gpus} == {"GPU-a", "GPU-b", "GPU-c"}
        assert len(second[1].environment()["CUDA_VISIBLE_DEVICES"].split(",")) == 2
        asked: list[int] = []

        def claim(gpus: int) -> str:
            asked.append(gpus)
            return "work"

        with slots.take(claim, lambda _: 1) as third:
            assert third is None
        assert asked == [], "claimed for a slot that is not there"
    assert slots.free == 3


def test_cpu_slots_share_the_cores_and_serve_no_gpu_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slots = Slots(64)
    with slots.take(lambda gpus: {"offered": gpus}, lambda _: 2) as taken:
        assert taken is not None
        work, place = taken
        assert work == {"offered": 0}
        assert (slots.free, place.environment()["OMP_NUM_THREADS"]) == (63, "1")
        assert place.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_a_slot_is_free_again_when_its_job_breaks() -> None:
    slots = Slots(1)
    with pytest.raises(ZeroDivisionError), slots.take(lambda _: 1, lambda _: 0):
        raise ZeroDivisionError
    assert slots.free == 1


def test_gpus_are_those_that_the_worker_may_see(tmp_path: Path) -> None:
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "0, 2"}) == ("0", "2")
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    assert find_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_a_gpu_that_is_cut_into_instances_counts_as_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'echo "GPU 0: NVIDIA H200 (UUID: GPU-whole)"\n'
        'echo "GPU 1: NVIDIA H200 (UUID: GPU-cut)"\n'
        'echo "  MIG 3g.71gb     Device  0: (UUID: MIG-a)"\n'
        'echo "  MIG 3g.71gb     Device  1: (UUID: MIG-b)"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_gpus({}) == ("GPU-whole", "MIG-a", "MIG-b")


def test_what_the_database_did_not_take_comes_before_what_came_since() -> None:
    """Guards against events in the wrong order, and a stage that goes back, after the database was away."""
    told = Telemetry({}, 1000)
    told.stage("teacher")
    told.log("first ")
    told.progress({"step": 1})
    old = told.take()
    told.stage("distilling")
    told.log("second")
    told.put_back(old)
    batch = told.take()
    assert (batch.stage, batch.progress, batch.log) == ("distilling", {"step": 1}, "first second")
    assert [note.data["stage"] for note in batch.events] == ["teacher", "distilling"]
    assert told.take().empty


def test_telemetry_is_bounded_however_long_the_database_is_away() -> None:
    told = Telemetry({}, 100)
    for step in range(MAX_POINTS * 3):
        told.metrics(step, {"loss": 1.0})
    for number in range(MAX_EVENTS + 10):
        told.event("note", str(number), {})
    for _ in range(50):
        told.log("0123456789")
    batch = told.take()
    assert len(batch.points) <= MAX_POINTS
    assert batch.points[-1].step == MAX_POINTS * 3 - 1
    assert [batch.events[0].message, batch.events[-1].message] == ["10", str(MAX_EVENTS + 9)]
    assert batch.log.startswith("0123456789" * 10 + "\n[The log is full")
    assert batch.log.count("The log is full") == 1


def test_provenance_is_merged_with_what_earlier_attempts_found() -> None:
    told = Telemetry({"seed": 1, "revision": "a"}, 0)
    told.provenance({"revision": "b"})
    assert told.take() == Batch(provenance={"seed": 1, "revision": "b"})
    told.metrics(1, {"loss": 2.0})
    told.event("kind", "message", {})
    assert told.take() == Batch(points=[Point("loss", 1, 2.0)], events=[Note("kind", "message", {})])
