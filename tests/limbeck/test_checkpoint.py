"""The state on disk: changed all at once, immutable files, whole or not used at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.checkpoint import CheckpointStore, mapped_tensors


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "state")
    store.write_json("journal", {"phase": "teacher"})
    store.write_tensors("training", {"weight": torch.arange(6.0).reshape(2, 3)}, {"step": 7})
    store.commit(7)
    return store


def reopened(store: CheckpointStore) -> CheckpointStore:
    return CheckpointStore(store.folder)


def test_what_was_committed_is_read_back(store: CheckpointStore) -> None:
    again = reopened(store)
    tensors, facts = again.read_tensors("training")
    assert again.step == 7
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert facts == {"step": 7}
    assert again.read_json("journal") == {"phase": "teacher"}


def test_tensors_are_read_into_memory_of_their_own(tmp_path: Path) -> None:
    """Guards a resumption: where a mapped file puts a tensor, kernels may round otherwise than they did before it."""
    store = CheckpointStore(tmp_path / "state")
    store.write_tensors("training", {f"{n}": torch.arange(float(n)) for n in (3, 5, 7, 9)}, {})
    store.commit(1)
    mapped, _ = mapped_tensors(store.path("training"))
    assert any(tensor.data_ptr() % 64 for tensor in mapped.values()), "or this test shows nothing"
    tensors, _ = reopened(store).read_tensors("training")
    assert not any(tensor.data_ptr() % 64 for tensor in tensors.values())


def test_the_manifest_names_every_file_with_its_hash(store: CheckpointStore) -> None:
    """Guards the format that the worker copies by."""
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert manifest["step"] == 7
    assert {name.split(".")[0] for name in manifest["files"]} == {"journal", "training"}
    for name, facts in manifest["files"].items():
        assert (store.folder / name).stat().st_size == facts["bytes"]
        assert facts["sha256"][:16] == name.split(".")[1]


def test_nothing_counts_before_the_commit(store: CheckpointStore) -> None:
    """Guards a kill between two files: the old state stays whole."""
    store.write_json("journal", {"phase": "student"})
    store.drop("training")
    again = reopened(store)
    assert again.read_json("journal") == {"phase": "teacher"}
    assert again.has("training")


def test_what_was_dropped_is_gone_with_the_commit(store: CheckpointStore) -> None:
    """Guards a resumed run, which takes what it finds for its own: an answer of before, or a step that is over."""
    store.drop("training")
    store.commit(8)
    again = reopened(store)
    assert (again.has("training"), again.has("journal"), again.step) == (False, True, 8)
    assert {name.split(".")[0] for name in again.committed} == {"journal", "manifest"}


def test_the_state_of_another_version_is_not_used(store: CheckpointStore) -> None:
    """Guards against tensors that meant something else when they were written."""
    path = store.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    again = reopened(store)
    assert again.damage == "it has the version 2, this Limbeck writes 1"
    assert (again.has("journal"), again.step, again.committed) == (False, 0, [])


def test_files_of_the_last_manifest_outlive_the_next_one(store: CheckpointStore) -> None:
    """Guards a reader that copies the state while a new one is committed."""
    before = set(json.loads((store.folder / "manifest.json").read_text())["files"])
    for step in (8, 9):
        store.write_json("journal", {"phase": step})
        store.commit(step)
        present = {file.name for file in store.folder.iterdir()}
        assert (before <= present) is (step == 8)


def test_a_damaged_file_is_noticed_and_nothing_of_the_state_is_used(store: CheckpointStore) -> None:
    """Guards against weights of one step beside the position of another."""
    victim = next(store.folder.glob("training.*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    again = reopened(store)
    assert again.damage is not None
    assert "training" in again.damage
    assert not again.has("journal")


def test_leftovers_of_a_killed_writer_are_swept(store: CheckpointStore) -> None:
    (store.folder / "training.safetensors.partial").write_bytes(b"half")
    (store.folder / "teacher.0123456789abcdef.safetensors").write_bytes(b"never committed")
    again = reopened(store)
    again.commit(8)
    assert not list(again.folder.glob("*.partial"))
    assert not list(again.folder.glob("teacher.*"))
    assert again.has("training")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are a POSIX thing")
def test_a_full_disk_is_named_and_keeps_the_last_good_state(store: CheckpointStore) -> None:
    """Guards the checkpoint that is being replaced when the disk runs full. A limit on file sizes stands in for it."""
    script = """
import resource, signal, sys
from pathlib import Path
import torch
from limbeck.checkpoint import CheckpointStore
from limbeck.errors import StorageFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
store = CheckpointStore(Path(sys.argv[1]))
try:
    store.write_tensors("training", {"weight": torch.zeros(100_000)}, {"step": 8})
except StorageFull as error:
    print(error.code)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(store.folder)], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert run.stdout.strip() == "storage_full", run.stderr
    again = reopened(store)
    assert again.damage is None
    assert again.read_tensors("training")[1] == {"step": 7}
    assert not list(again.folder.glob("*.partial"))
