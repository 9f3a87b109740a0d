"""The scorecard's section on a network that was trained at many sizes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from limbeck.elastic import evenly, heads_of, neurons_of
from limbeck.fewer_heads import KEPT
from limbeck.progress import forward_work
from limbeck.scorecard import SubNetwork
from limbeck.students import config_facts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.preparation import Prepared
    from limbeck.run import Run


def shape_of(model: PreTrainedModel) -> dict[str, int]:
    """``layers``, ``heads``, ``neurons`` and ``parameters`` of one size, these over the compact vocabulary."""
    config: Any = model.config
    return {
        "layers": int(config.num_hidden_layers),
        "heads": heads_of(config),
        "neurons": neurons_of(config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def sub_networks(run: Run, job: Prepared) -> tuple[SubNetwork, ...]:
    """Every size that the method trained along, the largest first; none where it trained one."""
    whole = config_facts_of(job.blueprint.config)
    total = _work(job, whole.layers, whole.heads, whole.intermediate_size)
    words = job.blueprint.vocabulary
    unused = 0 if job.student.trimmed else words.full_size - len(words)
    shape = job.student.shape
    own = shape.depth, shape.kept_heads or shape.heads, shape.intermediate_size
    return tuple(
        SubNetwork(
            layers=one["layers"],
            heads=one["heads"],
            neurons=one["neurons"],
            width=one["neurons"] / whole.intermediate_size,
            parameters=one["parameters"] + unused * (whole.embedding_size or whole.hidden_size),
            validation=one["validation"],
            flops=_work(job, one["layers"], one["heads"], one["neurons"]) / total,
            options=_options(job, one["layers"], one["heads"], one["neurons"]),
            student=(one["layers"], one["heads"], one["neurons"]) == own,
        )
        for one in run.facts.get("variants", {}).values()
    )


def _options(job: Prepared, layers: int, heads: int, neurons: int) -> dict[str, Any]:
    """What ``student`` says of this size; a sub-network of as many layers as the student has the student's."""
    whole = config_facts_of(job.blueprint.config)
    chosen = job.layers if layers == job.student.shape.depth else evenly(layers, whole.layers)
    # Six decimals name a single one of the neurons of every model that there is.
    shares = {"neurons": round(1 - neurons / whole.intermediate_size, 6), "heads": round(1 - heads / whole.heads, 6)}
    prune = {part: share for part, share in shares.items() if share > 0}
    return {"layers": list(chosen), **({"prune": prune} if prune else {})}


def _work(job: Prepared, layers: int, heads: int, neurons: int) -> float:
    config: Any = copy.copy(job.blueprint.config)
    config.intermediate_size = neurons
    setattr(config, KEPT, heads)
    return forward_work(config, layers, job.test.lengths)
