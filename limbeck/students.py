"""Building models: the teacher from its folder, the student from the teacher's layers, and both back into folders."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.dropout import quicken_dropout
from limbeck.errors import InvalidConfig, InvalidModel, Problem
from limbeck.families import family_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from limbeck.config import Student
    from limbeck.tasks.base import Task
    from limbeck.vocabulary import Vocabulary

_GENERIC_LABEL = re.compile(r"LABEL_\d+")


def student_layers(student: Student, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layers (from 0) that the student starts from.

    Raises:
        InvalidConfig: at ``/student/layers``, when the teacher has not so many.
    """
    wanted = max(1, teacher_layers // 2) if student.layers is None else student.layers
    if isinstance(wanted, tuple):
        if wanted[-1] >= teacher_layers:
            _refuse(f"found layer {wanted[-1]}; the teacher has the layers 0 to {teacher_layers - 1}")
        return wanted
    if wanted > teacher_layers:
        _refuse(f"found {wanted}; the teacher has {teacher_layers} layers, so 1 to {teacher_layers} are allowed")
    match student.init:
        case "first":
            return tuple(range(wanted))
        case "last":
            return tuple(range(teacher_layers - wanted, teacher_layers))
        case "uniform":
            return tuple((i + 1) * teacher_layers // wanted - 1 for i in range(wanted))
        case "skip":
            return tuple(i * teacher_layers // wanted for i in range(wanted))


def _refuse(detail: str) -> None:
    raise InvalidConfig(f"/student/layers: {detail}", [Problem("/student/layers", detail)])


def label_order(found: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """For each label of the data set, the teacher's output that means it.

    Names are compared without case. A head that names nothing (``LABEL_0``, ``LABEL_1`` …) is taken in its own order.

    Raises:
        InvalidModel: the two name different labels.
    """
    if len(found) == len(wanted) and all(_GENERIC_LABEL.fullmatch(name) for name in found):
        return list(range(len(found)))
    places = {name.casefold(): i for i, name in enumerate(found)}
    if len(found) != len(wanted) or set(places) != {name.casefold() for name in wanted}:
        raise InvalidModel(
            f"The teacher answers with the labels {_listed(found)}, but the data set has {_listed(wanted)}. "
            "Take the data set that it was trained for, or let the job fine-tune it: teacher.finetune = true."
        )
    return [places[name.casefold()] for name in wanted]


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
    """Everything about the models of a job but their weights: teacher and student differ in depth alone.

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
        return int(self.config.num_hidden_layers)

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
                model = self.task.model_class().from_pretrained(
                    self.folder,
                    config=copy.deepcopy(self.config),
                    dtype="float32",
                    use_safetensors=True,
                    local_files_only=True,
                    ignore_mismatched_sizes=not keep_head,
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidModel(f"The teacher's weights could not be loaded: {error}") from error
        if order is not None:
            _reorder(model.get_submodule(self.task.output_layer(self.config.model_type)), order)
        weights = model.state_dict()
        name = self._embedding_name(model)
        weights[name] = self.vocabulary.shrink(weights[name])
        return self.build(self.layers, weights)

    def build(self, layers: int, weights: Mapping[str, Tensor]) -> PreTrainedModel:
        """A model of so many layers with these (compact) weights, in training mode."""
        model = self._empty(layers, len(self.vocabulary))
        model.load_state_dict(dict(weights))
        quicken_dropout(model)
        return model

    def cut(self, teacher_weights: Mapping[str, Tensor], layers: Sequence[int]) -> PreTrainedModel:
        """The student at step 0: the teacher's embeddings, pooler and classifier, and these of its layers."""
        inside = re.compile(rf"(.*\b{re.escape(family_of(self.config.model_type).layers)}\.)(\d+)(\..*)")
        weights = {}
        for name, value in teacher_weights.items():
            found = inside.fullmatch(name)
            if found is None:
                weights[name] = value
            elif (number := int(found[2])) in layers:
                weights[f"{found[1]}{layers.index(number)}{found[3]}"] = value
        return self.build(len(layers), weights)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write a model with its whole vocabulary as a Hugging Face folder (configuration and safetensors)."""
        from transformers import AutoModel

        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        name = self._embedding_name(model)
        with quiet_transformers():
            source = AutoModel.from_pretrained(
                self.folder, dtype="float32", use_safetensors=True, local_files_only=True
            )
            original = source.get_input_embeddings().weight.detach()
            weights[name] = self.vocabulary.grow(weights[name], original)
            whole = self._empty(int(model.config.num_hidden_layers), self.vocabulary.full_size)
            whole.load_state_dict(weights)
            whole.save_pretrained(folder)

    def _labels(self) -> Iterator[str]:
        names: Any = self.config.id2label
        return (str(names[i]) for i in range(len(names)))

    def _empty(self, layers: int, vocabulary: int) -> PreTrainedModel:
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = layers
        config.vocab_size = vocabulary
        model: PreTrainedModel = self.task.model_class().from_config(config)
        return model

    @staticmethod
    def _embedding_name(model: PreTrainedModel) -> str:
        table = model.get_input_embeddings()
        return next(f"{name}.weight" for name, module in model.named_modules() if module is table)


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
    return config


def _reorder(output: Any, order: list[int]) -> None:
    import torch

    with torch.no_grad():
        output.weight.copy_(output.weight[order].clone())
        output.bias.copy_(output.bias[order].clone())
