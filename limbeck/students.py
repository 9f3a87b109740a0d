"""Building models: the teacher from its folder, the student from the teacher's layers, and both back into folders."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import exits, fewer_heads, recurrent
from limbeck.cutting import cut_config, cut_weights
from limbeck.dropout import quicken_dropout
from limbeck.errors import InvalidModel
from limbeck.exact import make_exact
from limbeck.families import FAMILIES, depth_of, family_of, require_plain
from limbeck.label_names import matched
from limbeck.model_folder import config_facts, safetensors_header
from limbeck.shapes import student_layers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from limbeck.model_folder import ModelFacts
    from limbeck.tasks.base import Task
    from limbeck.vocabulary import Vocabulary

__all__ = ["Blueprint", "label_order", "quiet_transformers", "read_config", "student_layers", "write_model"]


def label_order(found: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """For each label of the data set, the teacher's output that means it.

    Raises:
        InvalidModel: the two name different labels (:func:`limbeck.label_names.matched`).
    """
    order = matched(found, wanted)
    if order is None:
        raise InvalidModel(
            f"The teacher answers with the labels {_listed(found)}, but the data set has {_listed(wanted)}. "
            "Take the data set that it was trained for, or let the job fine-tune it: teacher.finetune = true."
        )
    return order


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars, and no report about a head that is new on purpose."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything about a model and those cut from it but the weights.

    Models are built over the compact :class:`~limbeck.vocabulary.Vocabulary`; :meth:`save` puts the rest back.
    """

    folder: Path  #: the teacher as it came
    config: PreTrainedConfig  #: the teacher's, with the data set's labels
    task: Task
    vocabulary: Vocabulary

    @classmethod
    def read(cls, folder: Path, task: Task, labels: Sequence[str], vocabulary: Vocabulary) -> Blueprint:
        """
        Raises:
            InvalidModel: no configuration that transformers reads, or a family that cannot be taken apart.
        """
        config = read_config(folder)
        task.configure(config, labels)
        return cls(folder, config, task, vocabulary)

    @property
    def layers(self) -> int:
        return depth_of(self.config)

    @property
    def reads_tokens(self) -> bool:
        """Whether it has a word table; without one, the vocabulary is empty."""
        return family_of(self.config.model_type).reads == "text"

    def load_teacher(self, *, keep_head: bool) -> PreTrainedModel:
        """The teacher with its own weights. Its head is its own, rows in the data set's order, or new and random.

        Raises:
            InvalidModel: the folder's weights do not fit its configuration, or its labels are not the data set's.
        """
        original = read_config(self.folder)
        order: list[int] | None = None
        if keep_head and self.task.named:
            order = label_order([original.id2label[i] for i in range(original.num_labels)], list(self._labels()))
        try:
            with quiet_transformers():
                model, report = self.task.model_class().from_pretrained(
                    self.folder,
                    config=copy.deepcopy(self.config),
                    dtype="float32",
                    use_safetensors=True,
                    local_files_only=True,
                    ignore_mismatched_sizes=not keep_head,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidModel(f"The teacher's weights could not be loaded: {error}") from error
        _require_weights(model, report, head=keep_head and not self.task.headless and not self.task.of_words)
        if order is not None:
            _reorder(model.get_submodule(self.task.output_layer(self.config.model_type)), order)
        elif not keep_head and self._took_another_head(model):
            renew_head(model)
        weights = model.state_dict()
        if not self.reads_tokens:
            return self.build(range(self.layers), weights)
        name = embedding_name(model)
        for one in (name, *_answered_words(model, original.vocab_size)):
            weights[one] = self.vocabulary.shrink(weights[one])
        return self.build(self.layers, weights)

    def _took_another_head(self, model: PreTrainedModel) -> bool:
        """Whether the folder has a head for other labels, or another task, that loading took for this one: its last
        layer is of the same name and shape."""
        if self.task.headless or self.task.of_words:
            return False
        name = f"{self.task.output_layer(self.config.model_type)}.weight"
        shape = list(model.get_parameter(name).shape)
        return any(
            safetensors_header(file).get(name, {}).get("shape") == shape for file in self.folder.glob("*.safetensors")
        )

    def build(self, layers: int | Sequence[int], weights: Mapping[str, Tensor]) -> PreTrainedModel:
        """A model of these layers (or so many) of the blueprint's with these (compact) weights, in training mode."""
        chosen = range(layers) if isinstance(layers, int) else layers
        return self.assemble(cut_config(self.config, chosen), weights)

    def assemble(self, config: PreTrainedConfig, weights: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
        """A model of this configuration over the compact vocabulary, in training mode; at its random start without
        ``weights``."""
        with quiet_transformers():  # of special tokens whose ids are beyond the compact vocabulary
            model = self.task.model_class().from_config(self.compact(config))
        fewer_heads.shrink(model)
        load_weights(model, weights)
        quicken_dropout(model)
        if self.task.kind == "value":
            make_exact(model, self.task.output_layer(config.model_type))
        found: PreTrainedModel = model
        return found

    def compact(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The same configuration over the compact vocabulary."""
        small = copy.deepcopy(config)
        if not self.reads_tokens:
            return small
        small.vocab_size = len(self.vocabulary)
        if small.pad_token_id is not None:
            small.pad_token_id = self.vocabulary.place(int(small.pad_token_id))
        return small

    def cut(self, teacher_weights: Mapping[str, Tensor], layers: Sequence[int]) -> PreTrainedModel:
        """The student at step 0: the teacher's embeddings, pooler and classifier, and these of its layers."""
        return self.build(tuple(layers), cut_weights(self.config, teacher_weights, tuple(layers)))

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write a model with its whole vocabulary as a Hugging Face folder (configuration and safetensors)."""
        if not self.reads_tokens:
            write_as_it_is(model, model.config, folder)
            return
        write_model(model, folder, self.vocabulary, word_table(self.original()), self.config.pad_token_id)

    def original(self) -> PreTrainedModel:
        """The folder's own encoder, without a head, over the whole vocabulary."""
        from transformers import AutoModel

        with quiet_transformers():
            model: PreTrainedModel = AutoModel.from_pretrained(
                self.folder, dtype="float32", use_safetensors=True, local_files_only=True
            )
        return model

    def _labels(self) -> Iterator[str]:
        names: Any = self.config.id2label
        return (str(names[i]) for i in range(len(names)))


def _require_weights(model: PreTrainedModel, report: Mapping[str, Any], *, head: bool) -> None:
    """
    Args:
        report: what transformers tells of the loading.
        head: whether what stands behind the encoder was to come from the folder as well.

    Raises:
        InvalidModel: the folder lacks a weight, or has it in another shape; transformers starts these at random.
    """
    inside = "" if model.base_model is model else f"{model.base_model_prefix}."
    drawn = sorted(report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]})
    # Encoders that were saved without a pooler are whole, and how many batches a norm saw decides nothing.
    lacking = [
        name
        for name in drawn
        if not name.endswith("num_batches_tracked") and (head or (name.startswith(inside) and "pooler." not in name))
    ]
    if lacking:
        raise InvalidModel(
            f"The model's weights do not fit its config.json: {len(lacking)} are missing or of another shape, "
            f"{_listed(lacking)}. They would be random; save the whole model with save_pretrained()."
        )


def embedding_name(model: PreTrainedModel) -> str:
    """What a model's state calls its word table."""
    table = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is table)


def _answered_words(model: PreTrainedModel, vocab_size: int) -> list[str]:
    """What a model's state calls the weights of a masked-LM head that have a row for each token."""
    if model.base_model is model:
        return []
    inside, table = f"{model.base_model_prefix}.", word_table(model)
    heads = ((name, one) for name, one in model.state_dict().items() if not name.startswith(inside))
    # A layer as wide as the vocabulary is none but the last; a width is never as large.
    return [name for name, one in heads if len(one) == vocab_size != table.shape[1]]


def has_words(model: PreTrainedModel) -> bool:
    """Whether a model reads tokens, and so has a word table."""
    family = FAMILIES.get(model.config.model_type)
    return family is None or family.reads == "text"


def word_table(model: PreTrainedModel) -> Tensor:
    """A model's word table, (tokens, width)."""
    table: Any = model.get_input_embeddings()
    weight: Tensor = table.weight
    return weight.detach()


def config_facts_of(config: Any) -> ModelFacts:
    """A configuration's facts, with all that its class assumes where nothing is said."""
    return config_facts(json.loads(config.to_json_string(use_diff=False)), parameters=0, bytes=0)


def write_model(
    model: PreTrainedModel, folder: Path, vocabulary: Vocabulary, table: Tensor, pad_token_id: int | None
) -> None:
    """Write a model of the compact vocabulary with its whole one; rows that were not trained come from ``table``."""
    weights = own_weights(model)
    name = embedding_name(model)
    weights[name] = vocabulary.grow(weights[name], table)
    config = copy.deepcopy(model.config)
    config.vocab_size, config.pad_token_id = vocabulary.full_size, pad_token_id
    with quiet_transformers():
        whole: Any = type(model)(config)
        fewer_heads.shrink(whole)
        whole.load_state_dict(weights)
        whole.save_pretrained(folder)
    save_beside(model, folder)


def write_as_it_is(model: PreTrainedModel, config: Any, folder: Path) -> None:
    """Write a model's weights with this configuration, which may say more than the one that it was built from."""
    with quiet_transformers():
        alone: Any = type(model)(copy.deepcopy(config))
        fewer_heads.shrink(alone)
        alone.load_state_dict(own_weights(model))
        alone.save_pretrained(folder)
    save_beside(model, folder)


def load_weights(model: PreTrainedModel, weights: Mapping[str, Tensor] | None) -> None:
    """Load these weights, if any, into a new model; it gets the branches of early exits that are among them."""
    if weights is not None:
        if any(map(exits.is_branch, weights)):
            exits.attach(model)
        model.load_state_dict(dict(weights))


def own_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """On the CPU, without those of branches, which have a file of their own: transformers knows nothing of them."""
    return {name: value.detach().cpu() for name, value in model.state_dict().items() if not exits.is_branch(name)}


def save_beside(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's branches beside it, where it has some, and what reads a model that transformers does not know."""
    if fewer_heads.kept_heads(model.config) is not None:
        fewer_heads.save_loader(folder)
    if isinstance(model, recurrent.RecurrentForSequenceClassification):
        recurrent.save_loader(folder)
    if exits.branches_of(model) is not None:
        exits.save(model, folder)


def read_config(folder: Path) -> Any:
    """A folder's transformers configuration, of a family that can be taken apart; runs no code of the folder's.

    Raises:
        InvalidModel: there is none, or its family is not supported.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidModel(f"The teacher has no configuration that transformers can read: {error}") from error
    family_of(config.model_type)
    require_plain(config)
    return config


def renew_head(model: PreTrainedModel) -> None:
    """Set the linear layers behind the encoder to a random start, from torch's generator."""
    from torch import nn

    inside = set(model.base_model.modules())
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in inside:
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _reorder(output: Any, order: list[int]) -> None:
    import torch

    with torch.no_grad():
        output.weight.copy_(output.weight[order].clone())
        output.bias.copy_(output.bias[order].clone())
