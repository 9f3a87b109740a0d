"""Token ids as Limbeck's tokeniser made them, in batches for the other trainers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Tokens(Dataset):
    """Examples end to end; ``starts`` has one entry more than there are."""

    ids: Any  # (tokens,)
    segments: Any  # (tokens,)
    starts: Any  # (examples + 1,)
    labels: Any  # (examples,)

    @classmethod
    def read(cls, path: str) -> Tokens:
        with np.load(path) as found:
            return cls(found["ids"], found["segments"], found["starts"], found["labels"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, Any]:
        part = slice(self.starts[place], self.starts[place + 1])
        return {
            "input_ids": torch.from_numpy(self.ids[part].astype(np.int64)),
            "token_type_ids": torch.from_numpy(self.segments[part].astype(np.int64)),
            "labels": int(self.labels[place]),
        }


@dataclass(frozen=True)
class Padding:
    """Makes a batch of examples: to the longest of them, or all to one length."""

    pad: int
    length: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = self.length or max(len(one["input_ids"]) for one in examples)
        batch = {
            "input_ids": torch.full((len(examples), length), self.pad),
            "attention_mask": torch.zeros(len(examples), length, dtype=torch.int64),
            "token_type_ids": torch.zeros(len(examples), length, dtype=torch.int64),
        }
        for row, one in enumerate(examples):
            count = len(one["input_ids"])
            batch["input_ids"][row, :count] = one["input_ids"]
            batch["token_type_ids"][row, :count] = one["token_type_ids"]
            batch["attention_mask"][row, :count] = 1
        return {**batch, "labels": torch.tensor([one["labels"] for one in examples])}


def loader(data: Tokens, order: dict[str, Any], pad: int) -> Any:
    """Batches in random order, as the trainers' examples have them."""
    draw = torch.Generator().manual_seed(order["seed"])
    collate = Padding(pad, order["padded_to"])
    return DataLoader(data, batch_size=order["batch_size"], shuffle=True, generator=draw, collate_fn=collate)


@torch.inference_mode()
def answers(model: Any, data: Tokens, pad: int, device: torch.device) -> list[list[float]]:
    """The model's logits for every example, in order; leaves its mode as it was."""
    was = model.training
    model.eval()
    order = np.argsort(np.diff(data.starts), kind="stable")
    collate, found = Padding(pad), np.empty((len(data), model.config.num_labels), np.float32)
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = collate([data[int(row)] for row in rows])
        del batch["labels"]
        found[rows] = model(**{name: one.to(device) for name, one in batch.items()}).logits.float().cpu().numpy()
    model.train(was)
    return [[round(float(value), 5) for value in row] for row in found]
