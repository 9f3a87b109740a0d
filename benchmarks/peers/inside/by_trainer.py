"""Hugging Face's Trainer with the teacher in ``compute_loss``, the usual way to distil by it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from models import Recorder


class Distiller(Trainer):
    """``alpha · T² · KL(teacher ‖ student) + (1 - alpha) · cross-entropy``, and the distances of states."""

    def __init__(self, teacher: Any, order: dict[str, Any], batches: Any, recorder: Recorder, **rest: Any) -> None:
        super().__init__(**rest)
        self.teacher, self.order, self.batches, self.recorder = teacher, order, batches, recorder

    def get_train_dataloader(self) -> Any:
        return self.accelerator.prepare(self.batches)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        states = bool(self.order["matches"])
        labels = inputs.pop("labels")
        outputs = model(**inputs, output_hidden_states=states)
        with torch.no_grad():
            taught = self.teacher(**inputs, output_hidden_states=states)
        softness, alpha = self.order["temperature"], self.order["alpha"]
        soft = F.kl_div(
            F.log_softmax(outputs.logits.float() / softness, dim=-1),
            F.log_softmax(taught.logits.float() / softness, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
        loss = alpha * softness**2 * soft + (1 - alpha) * F.cross_entropy(outputs.logits.float(), labels)
        for match in self.order["matches"]:
            ours, theirs = outputs.hidden_states[match["layer_S"]], taught.hidden_states[match["layer_T"]]
            loss = loss + match["weight"] * _distance(match["loss"], ours, theirs, inputs["attention_mask"])
        self.recorder.losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss


def _distance(kind: str, ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of two models' states, (examples, tokens, width); named as TextBrewer names them."""
    if kind == "pkd":
        apart = F.normalize(ours[:, 0].float(), dim=-1) - F.normalize(theirs[:, 0].float(), dim=-1)
        return apart.square().sum(-1).mean()
    if kind == "hidden_mse":
        each = (ours.float() - theirs.float()).square().mean(-1)
        return (each * mask).sum() / mask.sum()
    raise ValueError(f"no such loss: {kind}")


class _Epochs(TrainerCallback):
    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._ended()


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
    """Train; nothing but the recorder's facts."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=order["epochs"],
            per_device_train_batch_size=order["batch_size"],
            max_grad_norm=order["gradient_norm"],
            seed=order["seed"],
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=order["device"] == "cpu",
            bf16=order["device"] != "cpu",
        )
        distiller = Distiller(
            teacher,
            order,
            batches,
            recorder,
            model=student,
            args=settings,
            train_dataset=batches.dataset,
            optimizers=(optimizer, schedule),
            callbacks=[_Epochs(epoch_ended)],
        )
        distiller.remove_callback(PrinterCallback)
        recorder.begin()
        distiller.train()
    recorder.losses = [float(one) for one in recorder.losses]
    return {}
