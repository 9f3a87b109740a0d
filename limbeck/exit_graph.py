"""A student with branches as ONNX: a graph for every layer, so that between two of them texts can leave.

The whole is exported once, as ``limbeck/graph.py`` does it, with the states behind every layer and the branches' logits
as further outputs, and then cut at those states. The first piece has the embeddings in it, the last one the head. A
branch is computed only where somebody could leave behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import exits
from limbeck.graph import export_program, input_names
from limbeck.runtime.exits import ASKED, STATES, graph_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MASK = "attention_mask"


def write_exit_graphs(model: PreTrainedModel, folder: Path) -> None:
    """Write a student (float32, on the CPU, with branches) as the files that ``limbeck/runtime/exits.py`` runs."""
    import onnx
    from onnx.utils import Extractor

    layers = int(model.config.num_hidden_layers)
    states = [f"{STATES}_{i}" for i in range(1, layers)]
    logits = [f"logits_{i}" for i in range(1, layers + 1)]
    outputs = [name for pair in zip(states, logits, strict=False) for name in pair] + logits[-1:]
    whole = Extractor(export_program(_Pieces, model, outputs).model_proto)
    files = graph_files(folder, layers)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        given = [states[i - 1], _MASK] if i else list(input_names(model))
        piece = whole.extract_model(given, [*states[i : i + 1], logits[i]])
        if i < layers - 1:
            _ask(piece, whole.extract_model(given, [states[i]]), int(model.config.num_labels or 0))
        if i:
            _rename_input(piece.graph, given[0], STATES)
        onnx.save(piece, file)


def _ask(piece: Any, without: Any, classes: int) -> None:
    """Let a piece compute its branch only where ``asked`` is true; ``without`` is the same piece without the branch."""
    from onnx import TensorProto, helper, numpy_helper

    graph = piece.graph
    needed = {node.name for node in without.graph.node}
    branch = [node for node in graph.node if node.name not in needed]
    logits = graph.output[-1]
    inside = helper.make_tensor_value_info(f"{logits.name}_asked", TensorProto.FLOAT, None)
    for node in branch:
        node.output[:] = [inside.name if name == logits.name else name for name in node.output]
    nothing = helper.make_tensor_value_info(f"{logits.name}_unasked", TensorProto.FLOAT, None)
    zeros = numpy_helper.from_array(np.zeros((1, classes), dtype=np.float32))
    other = helper.make_node("Constant", [], [nothing.name], value=zeros)
    choice = helper.make_node(
        "If",
        [ASKED],
        [logits.name],
        name="branch",
        then_branch=helper.make_graph(branch, "asked", [], [inside]),
        else_branch=helper.make_graph([other], "unasked", [], [nothing]),
    )
    kept = [node for node in graph.node if node.name in needed]
    del graph.node[:]
    graph.node.extend([*kept, choice])
    graph.input.append(helper.make_tensor_value_info(ASKED, TensorProto.BOOL, []))
    # Shapes that were noted for values that are inside now.
    del graph.value_info[:]


def _rename_input(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:  # of the branch
            for inner in attribute.g.node:
                inner.input[:] = [new if name == old else name for name in inner.input]
    for given in graph.input:
        given.name = new if given.name == old else given.name


class _Pieces(nn.Module):
    """A model as a function to states and branch's logits of each layer but the last, and the head's logits."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.branches = nn.ModuleList(_Folded(branch) for branch in getattr(model, exits.MODULE))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        found: list[Tensor] = []

        def behind(i: int, states: Tensor) -> None:
            found.extend((states, self.branches[i](states, named[_MASK])))

        with exits.tapped(self.model, behind):
            logits: Tensor = self.model(**named).logits
        return (*found, logits)


class _Folded(nn.Module):
    """A branch in half as many operators, which at one short text cost more than what they compute: what follows one
    another without a nonlinearity is one matrix."""

    def __init__(self, branch: Any) -> None:
        super().__init__()
        heads, width = branch.head_of.shape
        self.shape = (-1, heads, width)
        self.narrow, self.output = branch.narrow, branch.output
        self.queries, self.values = nn.Linear(width, heads * width), nn.Linear(heads * width, width)
        with torch.no_grad():
            # (heads, width / heads, …): each head's own rows, or columns, of the branch's matrices
            keys = branch.keys.weight.view(heads, -1, width).transpose(1, 2) / branch.scale
            queries = keys @ branch.queries.weight.view(heads, -1, width)
            self.queries.weight.copy_(queries.flatten(0, 1))
            self.queries.bias.copy_((keys @ branch.queries.bias.view(heads, -1, 1)).flatten())
            dense = branch.dense.weight.view(width, heads, -1).transpose(0, 1)
            values = dense @ branch.values.weight.view(heads, -1, width)  # (heads, width, width)
            self.values.weight.copy_(values.transpose(0, 1).flatten(1))
            self.values.bias.copy_(branch.dense(branch.values.bias))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        states = torch.tanh(self.narrow(hidden_states))
        queries = self.queries(states[:, 0]).reshape(self.shape)
        padding = attention_mask[:, None, :].to(states.dtype).log()
        shares = torch.softmax(queries @ states.transpose(1, 2) + padding, dim=-1)
        seen = (shares @ states).flatten(1)
        logits: Tensor = self.output(torch.tanh(self.values(seen)))
        return logits
