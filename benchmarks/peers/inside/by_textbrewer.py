"""TextBrewer 0.2.1 as its documentation has it: GeneralDistiller, and BasicDistiller with its cached logits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import textbrewer

from models import Recorder


def train(
    order: dict[str, Any],
    student: Any,
    teacher: Any,
    batches: Any,
    optimizer: Any,
    schedule: Any,
    recorder: Recorder,
    epoch_ended: Callable[[], None],
) -> dict[str, Any]:
    """Train; the seconds of the caching pass, where there is one."""
    cached = order["trainer"] == "textbrewer-cached"
    squared = order["temperature"] ** 2  # its loss drops the factor, and takes it as a weight
    config = textbrewer.DistillationConfig(
        temperature=order["temperature"],
        kd_loss_type="ce",
        kd_loss_weight=order["alpha"] * squared,
        hard_label_weight=1 - order["alpha"],
        intermediate_matches=[{"feature": "hidden", **match} for match in order["matches"]],
        is_caching_logits=cached,
    )
    kind = textbrewer.BasicDistiller if cached else textbrewer.GeneralDistiller
    amp = _autocast(order)
    with tempfile.TemporaryDirectory() as folder:
        settings = textbrewer.TrainingConfig(output_dir=folder, device=order["device"])
        distiller = kind(settings, config, teacher, student, _adaptor, _adaptor)
        distiller.tb_writer = recorder
        passed = _time_pass(distiller, recorder) if cached else {}
        recorder.begin()
        extra = {"output_hidden_states": True} if order["matches"] else {}
        with distiller, amp:
            distiller.train(
                optimizer,
                batches,
                num_epochs=order["epochs"],
                scheduler_class=lambda optimizer: schedule,
                scheduler_args={},
                max_grad_norm=order["gradient_norm"],
                callback=lambda model, step: epoch_ended(),
                **extra,
            )
    return passed


def _adaptor(batch: dict[str, Any], outputs: Any) -> dict[str, Any]:
    found = {"logits": outputs.logits, "losses": outputs.loss, "inputs_mask": batch["attention_mask"]}
    return found if outputs.hidden_states is None else {**found, "hidden": outputs.hidden_states}


def _time_pass(distiller: Any, recorder: Recorder) -> dict[str, Any]:
    """The pass that fills the cache stands before the first step; its batches are timed one by one."""
    passed: dict[str, Any] = {"pass_seconds": 0.0}
    inner = distiller.cache_logits

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        inner(*arguments)
        ended = time.perf_counter()
        passed["pass_seconds"] += ended - began
        recorder.marks[0] = ended  # the first step begins now

    distiller.cache_logits = timed
    return passed


def _autocast(order: dict[str, Any]) -> Any:
    """bfloat16 on a card, where apex, which TextBrewer asks for, is no longer to be had."""
    import torch

    return torch.autocast(order["device"], torch.bfloat16, enabled=order["device"] != "cpu")
