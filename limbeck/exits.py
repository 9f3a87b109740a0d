"""Early exit: a small classifier behind every layer but the last, and texts that leave where one of them is sure.

FastBERT (Liu et al. 2020, arXiv:2004.02178). A branch is sure of a text when the entropy of its answer, as a share of
the largest that so many classes can have, is not above the ``speed`` that the caller chose: 0 sends every text through
all layers, 1 lets every text leave behind the first.

This file imports nothing of Limbeck's, because a copy of it travels with a student as ``early_exit.py``: with torch and
transformers alone, ``answer(load(folder), inputs, speed)`` does what the ONNX graphs do (``limbeck/runtime/exits.py``).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Where a model keeps its branches, and so the beginning of their names in its ``state_dict``.
MODULE = "exits"
WEIGHTS = "exits.safetensors"
LOADER = "early_exit.py"
#: The paper's sizes.
WIDTH, HEADS = 128, 2
_MASKED = -1e9


class Branch(nn.Module):
    """One layer's classifier: narrow, let the first token attend to all, and classify what it saw.

    Only the first token's answer is read, so only its query is made, and keys and values are never computed for every
    token: the query is brought into the space of the states, and the states are averaged before they become a value.
    The key's bias would shift all scores alike. The attention has no output projection: a linear layer follows.
    """

    head_of: Tensor

    def __init__(self, hidden: int, classes: int, *, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.narrow = nn.Linear(hidden, width)
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, width, bias=False)
        self.values = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.output = nn.Linear(width, classes)
        self.scale = math.sqrt(width // heads)
        head_of = torch.eye(heads).repeat_interleave(width // heads, dim=1)  # (heads, width): whose each number is
        self.register_buffer("head_of", head_of, persistent=False)

    def forward(
        self,
        hidden_states: Tensor,  # (examples, tokens, hidden)
        attention_mask: Tensor,  # (examples, tokens): 1 where there is a token
    ) -> Tensor:  # (examples, classes)
        states = torch.tanh(self.narrow(hidden_states))  # (examples, tokens, width)
        query = (self.queries(states[:, :1]) * self.head_of) @ (
            self.keys.weight / self.scale
        )  # (examples, heads, width)
        padding = (1 - attention_mask[:, None, :].to(states.dtype)) * _MASKED
        shares = torch.softmax(query @ states.transpose(1, 2) + padding, dim=-1)  # (examples, heads, tokens)
        seen = shares @ states @ self.values.weight.T  # (examples, heads, width): each head's, in all numbers
        mixed = (seen * self.head_of).sum(dim=1) + self.values.bias
        logits: Tensor = self.output(torch.tanh(self.dense(mixed)))
        return logits


class Exited(NamedTuple):
    """Answers of texts that left where they were sure."""

    logits: Tensor  # (examples, classes): of the branch behind the last layer that a text saw, or of the model's head
    layers: Tensor  # (examples,): how many layers each text went through


def attach(model: PreTrainedModel) -> None:
    """Give a model new, random branches; they are part of its ``state_dict`` from then on."""
    config = model.config
    hidden, classes = int(config.hidden_size), int(config.num_labels or 0)
    branches = [Branch(hidden, classes) for _ in range(int(config.num_hidden_layers) - 1)]
    model.add_module(MODULE, nn.ModuleList(branches).to(model.device))


def branches_of(model: PreTrainedModel) -> nn.ModuleList | None:
    """Its branches, one for every layer but the last; none where it has none."""
    found: nn.ModuleList | None = getattr(model, MODULE, None)
    return found


def is_branch(name: str) -> bool:
    """Whether a name in a ``state_dict`` is of a branch's weight."""
    return name.startswith(f"{MODULE}.")


def uncertainty(logits: Tensor) -> Tensor:
    """The entropy of each row's softmax as a share of the largest, ln(classes): (rows, classes) -> (rows,) in 0 … 1."""
    logs = F.log_softmax(logits.float(), dim=-1)
    return (-(logs.exp() * logs).sum(dim=-1) / math.log(logits.shape[-1])).clamp(0, 1)


def leaves(logits: Tensor, speed: float) -> Tensor:
    """Which rows are sure enough, (rows,) of bool; none at speed 0, however sure they are."""
    return uncertainty(logits) <= speed if speed > 0 else torch.zeros_like(logits[:, 0], dtype=torch.bool)


@contextmanager
def tapped(
    model: PreTrainedModel,
    behind: Callable[[int, Tensor], Tensor | None],
    before: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
) -> Iterator[None]:
    """Within the block, ``behind(i, states)`` is called with what layer ``i`` (from 0) gives, for all but the last;
    what it returns goes on in its place. ``before`` may change what a layer is called with, except the first one."""
    layers = _layers(model)
    hooks = [
        layer.register_forward_hook(lambda _, __, states, i=i: behind(i, states)) for i, layer in enumerate(layers[:-1])
    ]
    if before is not None:
        hooks += [
            layer.register_forward_pre_hook(lambda _, args, kwargs: before(args, kwargs), with_kwargs=True)
            for layer in layers[1:]
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    count = int(model.config.num_hidden_layers)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"a {model.config.model_type} has no list of its {count} layers")


@torch.inference_mode()
def every_answer(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """What each branch and, last, the model's own head answer where nobody leaves: (layers, examples, classes)."""
    answers, branches = [], _required(model)

    def behind(i: int, states: Tensor) -> None:
        answers.append(branches[i](states, inputs["attention_mask"]))

    with tapped(model, behind):
        last = model(**inputs).logits
    return torch.stack([*answers, last])


@torch.inference_mode()
def answer(model: PreTrainedModel, inputs: Mapping[str, Tensor], speed: float) -> Exited:
    """Answer a padded batch; the rest of the layers runs without the texts that have left.

    Args:
        model: with branches, in ``eval()``.
        inputs: ``input_ids``, ``attention_mask`` (both needed) and what else the model reads, (examples, tokens).
        speed: from 0 (nobody leaves) to 1.
    """
    mask = inputs["attention_mask"]
    count, branches = len(mask), _required(model)
    here = torch.arange(count, device=mask.device)  # the places in the batch of those who are still in
    layers = torch.full((count,), len(branches) + 1, device=mask.device)
    left: list[tuple[Tensor, Tensor]] = []

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states, *rest = args  # the states have shrunk already; the masks come as the model made them, for all
        rest = [_rows(value, here, count) for value in rest]
        return (states, *rest), {name: _rows(value, here, count) for name, value in kwargs.items()}

    def behind(i: int, states: Tensor) -> Tensor:
        nonlocal here
        logits = branches[i](states, mask[here])
        sure = leaves(logits, speed)
        left.append((here[sure], logits[sure]))
        layers[here[sure]] = i + 1
        here = here[~sure]
        if not len(here):
            raise _Empty
        return states[~sure]

    with suppress(_Empty), tapped(model, behind, before):
        last = model(**inputs).logits
        left.append((here, last))  # in this order: ``here`` shrinks while the model runs
    answers = torch.empty((count, left[-1][1].shape[1]), device=mask.device)
    for places, logits in left:
        answers[places] = logits.float()
    return Exited(answers, layers)


class _Empty(Exception):
    """No error: the way out of a model whose last text has left."""


def _rows(value: Any, places: Tensor, count: int) -> Any:
    """Of what has a row for each of ``count`` examples, those of ``places``; anything else as it is."""
    whole = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == count
    return value[places] if whole else value


def _required(model: PreTrainedModel) -> nn.ModuleList:
    branches = branches_of(model)
    if branches is None:
        raise ValueError("the model has no branches: attach() gives it new ones, load() those of a folder")
    return branches


def save(model: PreTrainedModel, folder: Path) -> None:
    """Put the branches, and this file to read them with, beside the model in a Hugging Face folder."""
    weights = {name: value.detach().cpu().contiguous() for name, value in _required(model).state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors keeps it to the owner; whoever may read the folder may read all of it.
    (folder / WEIGHTS).chmod(0o644)
    shutil.copyfile(__file__, folder / LOADER)


def load(folder: Path) -> PreTrainedModel:
    """The model of a folder with its branches, in ``eval()``."""
    from transformers import AutoModelForSequenceClassification

    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="float32", use_safetensors=True, local_files_only=True
    )
    attach(model)
    _required(model).load_state_dict(load_file(Path(folder) / WEIGHTS))
    model.train(False)
    return model
