"""What the students of a whole training are worth: the same examples, steps, schedule and losses, another trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.differences import paired_difference
from benchmarks.peers.order import Training
from benchmarks.training.files import Files
from benchmarks.training.systems import SYSTEMS, Workers
from benchmarks.training.workloads import WORKLOADS
from limbeck import evaluate

TRAINERS = ("limbeck", "trainer", "textbrewer", "textbrewer-cached")
#: The loop that does nothing for speed: what Limbeck's has to be as good as.
PLAIN = "trainer"
EXAMPLES, EPOCHS = 768, 2


def measure(files: Files, workers: Workers, systems: Sequence[str], examples: int = EXAMPLES) -> dict[str, Any]:
    """Accuracy on SST-2's public validation sentences, and Limbeck's difference from each of the others."""
    workload, training = WORKLOADS["sst2"], Training(epochs=EPOCHS)
    part, teacher = files.part(workload, examples), files.teacher(workload)
    with np.load(part.tokens["test"]) as data:
        truth = data["labels"]
    answers, seconds = {}, {}
    for name in systems:
        found = workers.ask(SYSTEMS[name], workload, teacher, part, training, held=True)
        answers[name] = np.asarray(found["epochs"][-1]["test"]).argmax(1)
        seconds[name] = found["marks"][-1] - found["marks"][0]
    return {
        "examples": examples,
        "epochs": EPOCHS,
        "sentences": len(truth),
        "accuracy": {
            name: evaluate.bootstrap("accuracy", one, truth, seed=0).model_dump() for name, one in answers.items()
        },
        "difference": {
            name: paired_difference("accuracy", ours=answers["limbeck"], theirs=one, truth=truth)
            for name, one in answers.items()
            if name != "limbeck" and "limbeck" in answers
        },
        "seconds": seconds,
    }
