"""Which neurons and heads of a layer matter: those without which the loss would change most, to the first order.

Setting a neuron's output a, or all that a head answers, to nothing changes the loss by about -a · ∂L/∂a: summed over
the tokens of a text, in absolute value, summed over texts (Molchanov et al. 2017, Pruning Convolutional Neural
Networks, arXiv:1611.06440; for transformers Michel et al. 2019, Are Sixteen Heads Really Better than One?,
arXiv:1905.10650).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.batches import Collator
from limbeck.criterion import Criterion
from limbeck.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.preparation import Prepared
    from limbeck.run import Run

#: Training examples on which the importance of neurons is measured.
_PRUNED_ON = 512
Part = Literal["neurons", "heads"]
PARTS: tuple[Part, Part] = ("neurons", "heads")
#: Where the state keeps how much each of them matters.
_ROLES: Mapping[Part, str] = {"neurons": "pruning", "heads": "pruning-heads"}


_Loss = Callable[["PreTrainedModel", "Batch"], Tensor]


def neuron_importance(model: PreTrainedModel, batches: Iterable[Batch], loss: _Loss) -> Tensor:
    """How much each neuron matters, (layers, neurons); where layers are one, (1, neurons).

    Args:
        model: the teacher; put into ``eval()``, its parameters stay as they are.
        batches: labelled texts.
        loss: the mean loss of a batch.
    """
    return _importance(model, batches, loss, family_of(model.config.model_type).neurons[1], 1)


def head_importance(model: PreTrainedModel, batches: Iterable[Batch], loss: _Loss) -> Tensor:
    """How much each head matters, (layers, heads): of its answer before the heads are mixed; arguments as above."""
    size = int(model.config.hidden_size) // int(model.config.num_attention_heads)
    return _importance(model, batches, loss, family_of(model.config.model_type).mixing, size)


def _importance(model: PreTrainedModel, batches: Iterable[Batch], loss: _Loss, behind: str, together: int) -> Tensor:
    """Of what the linear layer ``behind`` of each layer reads, ``together`` numbers as one."""
    family = family_of(model.config.model_type)
    found = model.base_model.get_submodule(family.layers)
    layers = [found] if family.shared else list(found.children())
    sums: list[Tensor | None] = [None] * len(layers)

    def watch(place: int) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            (activation,) = inputs  # (texts, tokens, numbers)

            def add(gradient: Tensor) -> None:
                parts = (activation.detach() * gradient).sum(dim=1)  # (texts, numbers)
                parts = parts.reshape(len(parts), -1, together).sum(dim=2)
                each = parts.abs().sum(dim=0).float().cpu()
                known = sums[place]
                sums[place] = each if known is None else known + each

            activation.register_hook(add)  # type: ignore[no-untyped-call]

        return hook

    handles = [
        layer.get_submodule(behind).register_forward_pre_hook(watch(place)) for place, layer in enumerate(layers)
    ]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    model.train(False).requires_grad_(True)
    try:
        for batch in batches:
            # The mean over the batch makes every gradient a share of it.
            torch.autograd.backward(loss(model, batch) * len(batch.labels))
            model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(before)
    return torch.stack([one for one in sums if one is not None])


def most_important(importance: Tensor, count: int) -> list[Tensor]:
    """For each layer the places of its ``count`` most important neurons or heads, rising; equal ones by their place."""
    order = torch.sort(importance, dim=1, descending=True, stable=True).indices
    return [row[:count].sort().values for row in order]


def importance_of(run: Run, job: Prepared, load: Callable[[], PreTrainedModel], part: Part) -> Tensor:
    """How much each of the teacher's neurons, or heads, matters, (layers, parts); measured once, and kept in the
    state."""
    return run.first(lambda: _measured(run, job, load, part))


def _measured(run: Run, job: Prepared, load: Callable[[], PreTrainedModel], part: Part) -> Tensor:
    role = _ROLES[part]
    if not run.store.has(role):
        criterion = Criterion(job.task)
        data = job.labelled  # the loss is against labels, and of pairs it needs both texts
        collate = Collator(data, job.blueprint.compact(job.blueprint.config).pad_token_id or 0, run.device.torch)
        drawn = np.random.default_rng(run.config.training.seed).permutation(data.groups)[:_PRUNED_ON]

        def batches() -> Iterator[Batch]:
            for groups in np.array_split(drawn, max(1, len(drawn) // run.config.training.batch_size)):
                run.poll()
                yield collate(data.rows_in(groups))

        measure = neuron_importance if part == "neurons" else head_importance
        with torch.random.fork_rng(devices=[]):  # of its random start nothing may hang on which attempt measured
            model = load()
        found = measure(
            model,
            batches(),
            lambda model, batch: criterion.hard(criterion.answer(model, batch, inside=True), batch).value,
        )
        run.store.write_tensors(role, {"importance": found}, {})
        run.commit()
    return run.store.read_tensors(role)[0]["importance"]


def kept_parts(run: Run, job: Prepared, load: Callable[[], PreTrainedModel], part: Part) -> list[Tensor] | None:
    """The neurons, or heads, that pruning leaves in each of the student's layers; found once, for the student and its
    baseline. None where all stay."""
    prune, shape = run.config.student.prune, job.student.shape
    share = None if prune is None else getattr(prune, part)
    if share is None:
        return None
    count = shape.intermediate_size if part == "neurons" else shape.kept_heads
    assert count is not None
    known, measured_on = run.store.has(_ROLES[part]), min(job.labelled.groups, _PRUNED_ON)
    importance = importance_of(run, job, load, part)
    if not known:
        run.event(
            "student.pruned",
            f"{share:.0%} of the {part} go, the least important on {measured_on:,} training examples; "
            f"{count:,} stay in each layer",
            **{part: count},
        )
    chosen = importance[list(shape.layers)] if len(importance) == job.blueprint.layers else importance
    return most_important(chosen, count)
