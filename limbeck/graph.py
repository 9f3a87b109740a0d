"""A torch student as an ONNX graph.

ONNX Runtime's ``Attention`` is one operator for the three projections and the attention itself. torch's exporter knows
nothing of it, and onnxruntime's own optimiser no longer finds its patterns in what that exporter writes (measured with
torch 2.13 and onnxruntime 1.32: it fuses no attention, and what it does fuse the session fuses when it loads). So the
self-attention modules are replaced by ones that export to the operator. Against the exported "sdpa" graph a text at a
time this takes 0.6 of the time, int8 0.75 of that of its own; at 32 texts little remains of the difference. The last
layer answers from the first token where the head reads no other (``limbeck/first_token.py``).

The operator knows no relative positions and no windows: families that have them (``Family.fused_export``) are exported
as they are.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.errors import ExportFailed
from limbeck.families import FAMILIES, family_of
from limbeck.first_token import shorten_exported
from limbeck.students import has_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.tasks.base import Task

_NAME = "limbeck_onnx"
#: What those families of ``limbeck/families.py`` that are exported so call the three projections.
_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))


class FusedAttention(nn.Module):
    """Stands for a self-attention module of transformers while its model is exported; computes nothing itself."""

    def __init__(self, original: nn.Module, names: tuple[str, str, str]) -> None:
        super().__init__()
        projections: list[Any] = [original.get_submodule(name) for name in names]
        weight = torch.cat([p.weight.detach() for p in projections])  # (3 width, hidden)
        self.weight = nn.Parameter(weight.T.contiguous())  # (hidden, 3 width)
        self.bias = nn.Parameter(torch.cat([p.bias.detach() for p in projections]))  # (3 width,)
        #: Of all heads together: the hidden size, or less where some are gone.
        self.width = int(projections[0].out_features)
        self.heads = projections[0].out_features // int(original.attention_head_size)  # type: ignore[arg-type]
        #: DistilBERT keeps the output projection in the same module, ALBERT the rest of the block as well.
        self.output = getattr(original, "out_lin", None)
        self.dense, self.norm = (getattr(original, name, None) for name in ("dense", "LayerNorm"))
        self.first_alone = False  #: whether only what the first token gathered is handed on

    def forward(
        self,
        hidden_states: Tensor,  # (examples, tokens, hidden)
        attention_mask: Tensor,  # (examples, tokens), int32
        **_: Any,
    ) -> tuple[Tensor, None]:
        mixed = torch.onnx.ops.symbolic(
            "com.microsoft::Attention",
            (hidden_states, self.weight, self.bias, attention_mask),
            {"num_heads": self.heads},
            dtype=hidden_states.dtype,
            shape=(*hidden_states.shape[:-1], self.width),
            version=1,
        )
        if self.first_alone:
            mixed = mixed[:, :1]
        if self.dense is not None and self.norm is not None:
            return self.norm(hidden_states + self.dense(mixed)), None
        return (mixed if self.output is None else self.output(mixed)), None


class _Logits(nn.Module):
    """A model as a function of tensors alone, in the order of ``names``."""

    def __init__(self, model: PreTrainedModel, task: Task, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.task.logits(self.model(**dict(zip(self.names, inputs, strict=True))))


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the model reads: ``input_ids``, ``attention_mask`` and, where it knows two types, ``token_type_ids``; of
    images ``pixel_values``."""
    if not has_words(model):
        return ("pixel_values",)
    types = getattr(model.config, "type_vocab_size", 0) > 1
    return ("input_ids", "attention_mask", "token_type_ids") if types else ("input_ids", "attention_mask")


def write_graph(model: PreTrainedModel, task: Task, path: Path) -> None:
    """Write ``model`` (float32, on the CPU) as an ONNX file whose axes ``batch`` and ``sequence`` are free.

    Inputs are :func:`input_names`, int64 of (batch, sequence); the output is ``logits``, (batch, classes), or
    (batch, sequence, classes) where the task answers each token.
    """
    export_program(lambda exported, names: _Logits(exported, task, names), model, ["logits"]).save(path)


def export_program(
    wrapped: Callable[[PreTrainedModel, tuple[str, ...]], nn.Module], model: PreTrainedModel, outputs: Sequence[str]
) -> Any:
    """A copy of ``model`` with fused attention as an ``ONNXProgram``.

    Args:
        wrapped: makes of it, and of its :func:`input_names`, a function of tensors alone.
        outputs: names of what that gives.
    """
    names = input_names(model)
    exported = copy.deepcopy(model)
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.fused_export:
        exported = fuse_attention(exported)
        shorten_exported(exported)
    exported.train(False)
    examples, axes = _examples(model, names)
    with _quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            wrapped(exported, names),
            examples,
            dynamo=True,
            input_names=names,
            output_names=list(outputs),
            dynamic_shapes=((axes,) * len(names),),
            verbose=False,
            external_data=False,
        )
    assert program is not None
    _forget_origin(program.model)
    return program


def _examples(model: PreTrainedModel, names: tuple[str, ...]) -> tuple[tuple[Tensor, ...], dict[int, Any]]:
    """What the model is traced with, and which axes of it are free."""
    batch = torch.export.Dim("batch")
    if not has_words(model):
        config: Any = model.config
        # A ResNet reads any size; a student is given what its preparation makes, and 64 stands for that.
        size = getattr(config, "image_size", 64)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        free = {} if hasattr(config, "image_size") else {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
        return (torch.zeros((2, config.num_channels, height, width)),), {0: batch} | free
    # Two rows and some tokens: a dimension of one would be taken for a constant; a tensor of its own for each input:
    # one tensor in two places would be taken for one input.
    examples = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in names)
    longest = _positions(model)
    sequence = torch.export.Dim("sequence") if longest is None else torch.export.Dim("sequence", max=longest)
    return examples, {0: batch, 1: sequence}


def fuse_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Replace every self-attention, in place.

    Raises:
        ExportFailed: they are not built as those of the known families.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    found: dict[str, tuple[str, str, str]] = {}
    for name, module in model.named_modules():
        for names in _PROJECTIONS:
            if all(hasattr(module, projection) for projection in names):
                found[name] = names
    expected = 1 if family_of(model.config.model_type).shared else model.config.num_hidden_layers
    if len(found) != expected:
        raise ExportFailed(
            f"The attention of a {model.config.model_type} is not known to the exporter; leave `export` empty for it."
        )
    for name, names in found.items():
        model.set_submodule(name, FusedAttention(model.get_submodule(name), names))
    # The name's mask is what the fused modules get; its attention is never called, as none but they are left.
    AttentionMaskInterface.register(_NAME, _padding_mask)
    AttentionInterface.register(_NAME, _unreachable)
    model.set_attn_implementation(_NAME)
    return model


def _forget_origin(model: Any) -> None:
    """Drop what the exporter notes on each node: stack traces with this machine's paths, some 60 % of a tiny graph."""
    for part in (model, model.graph, *model.graph.all_nodes()):
        part.metadata_props.clear()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()


def _padding_mask(*, attention_mask: Tensor, **_: Any) -> Tensor:
    return attention_mask.to(torch.int32)


def _unreachable(*_: Any, **__: Any) -> None:
    raise AssertionError("a self-attention was left that is not fused")


def _positions(model: PreTrainedModel) -> int | None:
    """The most tokens that a model reads, where there is a limit."""
    config, family = model.config, FAMILIES.get(model.config.model_type)
    if config.max_position_embeddings is None:
        return None
    offset = (config.pad_token_id or 0) + 1 if family is not None and family.offset else 0
    return int(config.max_position_embeddings) - offset


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's words on torchvision, axis names and its own deprecated calls."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
