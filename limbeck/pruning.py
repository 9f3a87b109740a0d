"""Which neurons of a feed-forward part matter: those without which the loss would change most, to the first order.

Setting a neuron's output a to nothing changes the loss by about -a · ∂L/∂a: summed over the tokens of a text, in
absolute value, summed over texts (Molchanov et al. 2017, Pruning Convolutional Neural Networks, arXiv:1611.06440; for
transformers Michel et al. 2019, Are Sixteen Heads Really Better than One?, arXiv:1905.10650).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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

#: Training texts on which the importance of neurons is measured.
_PRUNED_ON = 512


def neuron_importance(
    model: PreTrainedModel, batches: Sequence[Batch], loss: Callable[[PreTrainedModel, Batch], Tensor]
) -> Tensor:
    """How much each neuron matters, (layers, neurons); where layers are one, (1, neurons).

    Args:
        model: the teacher; put into ``eval()``, its parameters stay as they are.
        batches: labelled texts.
        loss: the mean loss of a batch.
    """
    family = family_of(model.config.model_type)
    found = model.base_model.get_submodule(family.layers)
    layers = [found] if family.shared else list(found.children())
    sums: list[Tensor | None] = [None] * len(layers)

    def watch(place: int) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            (activation,) = inputs  # (texts, tokens, neurons)

            def add(gradient: Tensor) -> None:
                each = (activation.detach() * gradient).sum(dim=1).abs().sum(dim=0).float().cpu()
                known = sums[place]
                sums[place] = each if known is None else known + each

            activation.register_hook(add)  # type: ignore[no-untyped-call]

        return hook

    handles = [
        layer.get_submodule(family.neurons[1]).register_forward_pre_hook(watch(place))
        for place, layer in enumerate(layers)
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
    """For each layer the places of its ``count`` most important neurons, rising; equal ones by their place."""
    order = torch.sort(importance, dim=1, descending=True, stable=True).indices
    return [row[:count].sort().values for row in order]


def importance_of(run: Run, job: Prepared, load: Callable[[], PreTrainedModel]) -> Tensor:
    """How much each of the teacher's neurons matters, (layers, neurons); measured once, and kept in the state."""
    return run.ranks.first(lambda: _measured(run, job, load))


def _measured(run: Run, job: Prepared, load: Callable[[], PreTrainedModel]) -> Tensor:
    if not run.store.has("pruning"):
        criterion = Criterion(job.task)
        collate = Collator(job.train, job.blueprint.compact(job.blueprint.config).pad_token_id or 0, run.device.torch)
        drawn = np.random.default_rng(run.config.training.seed).permutation(len(job.train))[:_PRUNED_ON]
        parts = np.array_split(drawn, max(1, len(drawn) // run.config.training.batch_size))
        found = neuron_importance(
            load(),
            [collate(part) for part in parts],
            lambda model, batch: criterion.hard(criterion.answer(model, batch), batch).value,
        )
        run.store.write_tensors("pruning", {"importance": found}, {})
        run.commit()
    return run.store.read_tensors("pruning")[0]["importance"]


def kept_neurons(run: Run, job: Prepared, load: Callable[[], PreTrainedModel]) -> list[Tensor] | None:
    """The neurons that pruning leaves in each of the student's layers; found once, for the student and its baseline."""
    prune, layers = run.config.student.prune, job.student.shape.layers
    if prune is None:
        return None
    known = run.store.has("pruning")
    importance = importance_of(run, job, load)
    if not known:
        run.event(
            "student.pruned",
            f"{prune.neurons:.0%} of the neurons go, the least important on {min(len(job.train), _PRUNED_ON):,} "
            f"training texts; {job.student.shape.intermediate_size:,} stay in each layer",
            neurons=job.student.shape.intermediate_size,
        )
    chosen = importance[list(layers)] if len(importance) == job.blueprint.layers else importance
    return most_important(chosen, job.student.shape.intermediate_size)
