"""A trainer for tests of the worker: the real process, pipe and leash around work that is only counted.

The job's ``config["does"]`` says what happens: ``steps`` and ``seconds`` of each, ``saves`` (a step that has a
checkpoint whatever the clock says), ``trace`` (a file that gets a line a step), ``at`` (the step at which something
happens) and then ``signal``, ``exit``, ``error``, ``hang``, ``polls`` (seconds in which it says that it is alive, and
nothing else), ``say`` or ``temporary`` (a file that gets the name of a temporary folder, which stays). With
``offer`` it first offers a teacher's pass (``key``, ``parts``), of which it computes nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from limbeck.callbacks import CheckpointInfo, Progress, Stage
from limbeck.machine import likeness
from limbeck.offer import PARTS, Offer, OfferFolder, Part
from worker import trainer
from worker.trainer import Pipe


def count(workdir: Path, order: Mapping[str, Any], pipe: Pipe) -> int:
    does = order["config"].get("does", {})
    steps = does.get("steps", 3)
    step = resume(workdir / "state")
    saved = time.monotonic()
    sys.stdout.write(f"counting from {step}\n")
    pipe.on_stage(Stage.DISTILLING)
    if "offer" in does and not share(workdir, does["offer"], pipe):
        pipe.send("interrupted")
        return trainer.EXIT_INTERRUPTED
    while step < steps:
        if step == does.get("at") and not happen(does, pipe):
            return 1
        time.sleep(does.get("seconds", 0.02))
        step += 1
        if "trace" in does:
            with Path(does["trace"]).open("a") as trace:
                trace.write(f"{workdir.parent.name} {step}\n")
        pipe.on_progress(Progress(Stage.DISTILLING, step, steps, 100 * step / steps, None, None))
        pipe.on_metrics(step, {"distilling/loss": 1 / step, "distilling/nan": float("nan")})
        stop = pipe.should_stop() and not does.get("deaf")
        if stop or step == does.get("saves") or time.monotonic() - saved > order["checkpoint_seconds"]:
            pipe.on_checkpoint(save(workdir / "state", step))
            saved = time.monotonic()
        if stop:
            pipe.send("interrupted")
            return trainer.EXIT_INTERRUPTED
    student(workdir / "output" / "student", step)
    scorecard = {"version": 1, "verdict": {"passed": True, "reasons": []}}
    pipe.send(
        "result",
        student="output/student",
        baseline=None,
        hard_samples=[],
        scorecard=scorecard,
        teacher={},
        provenance={"seed": 1},
    )
    return 0


def happen(does: Mapping[str, Any], pipe: Pipe) -> bool:
    if "signal" in does:
        os.kill(os.getpid(), does["signal"])
    if "exit" in does:
        os._exit(does["exit"])
    if "error" in does:
        pipe.send("error", **does["error"])
        return False
    if "hang" in does:
        time.sleep(does["hang"])
    for _ in range(does.get("polls", 0)):
        time.sleep(1)
        pipe.on_alive()
    if "temporary" in does:
        Path(does["temporary"]).write_text(tempfile.mkdtemp())
    if "say" in does:
        sys.stdout.write(does["say"] * does.get("times", 1))
    return True


def share(workdir: Path, offered: Mapping[str, Any], pipe: Pipe) -> bool:
    """Offer parts, and wait until they are all there; whether they are."""
    pipe.on_checkpoint(save(workdir / "state", 0, ("counter", "journal", "data", "teacher")))
    place = OfferFolder(workdir / PARTS)
    parts = tuple(Part(number, number + 1) for number in range(offered["parts"]))
    place.put(Offer(offered["key"], "teacher", likeness(), 1, parts))
    while len(place.handed_in(offered["key"])) < len(parts):
        if pipe.should_stop():
            return False
        time.sleep(0.02)
    for part in parts:
        assert place.path(offered["key"], part).read_text() == str(part.first)
    place.withdraw()
    return True


def resume(state: Path) -> int:
    manifest = state / "manifest.json"
    if not manifest.exists():
        return 0
    (name,) = (name for name in json.loads(manifest.read_text())["files"] if name.startswith("counter."))
    return int(json.loads((state / name).read_text()))


def save(state: Path, step: int, roles: Sequence[str] = ("counter",)) -> CheckpointInfo:
    content = json.dumps(step).encode()
    digest = hashlib.sha256(content).hexdigest()
    state.mkdir(parents=True, exist_ok=True)
    files = {}
    for role in roles:
        name = f"{role}.{digest[:16]}.json"
        (state / name).write_bytes(content)
        files[name] = {"sha256": digest, "bytes": len(content)}
    aside = state / "manifest.partial"
    aside.write_text(json.dumps({"version": 1, "step": step, "files": files}))
    aside.replace(state / "manifest.json")
    return CheckpointInfo(step, state / "manifest.json")


def student(folder: Path, step: int) -> None:
    (folder / "onnx").mkdir(parents=True)
    save_file({"counter": np.asarray([step], dtype=np.float32)}, folder / "model.safetensors")
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": 4,
        "num_attention_heads": 1,
        "id2label": {"0": "a", "1": "b"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    labels = {"version": 1, "task": "sequence_classification", "labels": ["a", "b"], "max_length": 8, "pair": False}
    (folder / "limbeck.json").write_text(json.dumps(labels))
    (folder / "onnx" / "model.onnx").write_bytes(b"not really")


if __name__ == "__main__":
    code = trainer.main(train=count)
    sys.stdout.flush()
    os._exit(code)
