"""The student of a job: what it starts as, how it is built again from its weights, and the folder that it leaves in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck import fewer_heads
from limbeck.cutting import cut_config
from limbeck.dropout import quicken_dropout
from limbeck.errors import InvalidConfig, Problem
from limbeck.exact import make_exact
from limbeck.narrowing import Bases, Basis, narrow
from limbeck.shapes import Shape, resolve
from limbeck.students import (
    Blueprint,
    config_facts_of,
    word_table,
    write_as_it_is,
    write_model,
)
from limbeck.trimming import renumber_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from limbeck.config import Student

#: Spread of the rows of a random word table, transformers' own.
_SPREAD = 0.02


@dataclass(frozen=True, slots=True)
class StudentPlan:
    """A student's options, resolved against the model that it is made from."""

    options: Student
    shape: Shape
    origin: Blueprint  #: of the teacher, or of ``student.source``
    matched: tuple[int, ...]  #: the teacher's layer that each of the student's stands for; none where there is no such
    keep_head: bool  #: whether the head that ``student.source`` has answers with the data set's labels
    seed: int

    @classmethod
    def of(
        cls,
        options: Student,
        teacher: Blueprint,
        *,
        source: Blueprint | None = None,
        keep_head: bool = False,
        seed: int,
    ) -> StudentPlan:
        """
        Args:
            teacher: the teacher's blueprint.
            source: that of ``options.source``.
            keep_head: whether the head of ``source`` is used.
            seed: draws what starts at random.

        Raises:
            InvalidConfig: the options do not fit; the fields are named.
        """
        origin = source or teacher
        if options.recurrent:
            _require_text_labels(options, teacher)
        shape = resolve(options, config_facts_of(origin.config))
        matched = shape.layers
        if source is not None:
            count = len(matched)
            fits = count <= teacher.layers
            matched = tuple((i + 1) * teacher.layers // count - 1 for i in range(count)) if fits else ()
        return cls(options, shape, origin, matched, keep_head, seed)

    @property
    def trimmed(self) -> bool:
        """Whether the student keeps the compact vocabulary, and so has a tokenizer of its own."""
        return self.options.vocabulary == "trimmed"

    @property
    def narrow(self) -> bool:
        """Whether a weight of the student differs in shape from the teacher's."""
        config = cut_config(self.origin.config, self.shape.layers)
        own = config_facts_of(config)
        table = own.embedding_size or own.hidden_size
        have = self.shape.hidden_size, self.shape.intermediate_size, self.shape.heads, self.shape.embedding_size
        return have != (own.hidden_size, own.intermediate_size, own.heads, table)

    @property
    def new_head(self) -> bool:
        """Whether its head is drawn, and neither the teacher's nor that of ``student.source``."""
        if self.options.source is not None:
            return not self.keep_head
        return self.options.recurrent or self.options.start == "random"

    def config(self) -> Any:
        """The student's configuration, over the origin's whole vocabulary."""
        if self.options.recurrent:
            return self._recurrent_config()
        config, shape = cut_config(self.origin.config, self.shape.layers), self.shape
        if self.options.source is not None or hasattr(config, "depths"):
            return config
        config.hidden_size, config.num_attention_heads = shape.hidden_size, shape.heads
        setattr(config, "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size", shape.intermediate_size)
        if hasattr(config, "embedding_size") or shape.embedding_size != shape.hidden_size:
            config.embedding_size = shape.embedding_size
        if hasattr(config, "pooler_hidden_size"):
            config.pooler_hidden_size = shape.hidden_size
        if shape.kept_heads is not None:
            setattr(config, fewer_heads.KEPT, shape.kept_heads)
        return config

    def _recurrent_config(self) -> Any:
        from limbeck.recurrent import RecurrentConfig

        of = self.origin.config
        config = RecurrentConfig(
            vocab_size=of.vocab_size,
            embedding_size=self.shape.embedding_size,
            hidden_size=self.shape.hidden_size,
            num_hidden_layers=self.shape.depth,
            cell=self.options.architecture,
            pad_token_id=of.pad_token_id,
        )
        config.id2label, config.label2id, config.problem_type = of.id2label, of.label2id, of.problem_type
        return config

    def start(
        self,
        teacher: Mapping[str, Tensor],
        neurons: Sequence[Tensor] | None = None,
        heads: Sequence[Tensor] | None = None,
    ) -> PreTrainedModel:
        """The student at step 0; the same whenever it is called.

        Args:
            teacher: its fine-tuned weights, over the compact vocabulary.
            neurons: those that pruning leaves, for each layer of ``shape.layers``.
            heads: likewise.
        """
        with self._drawing():
            if self.options.source is not None:
                teacher = self.origin.load_teacher(keep_head=self.keep_head).state_dict()
            elif self.options.start == "random" or self.options.recurrent:
                student = self.build(None)
                if self.options.start != "random":
                    self._take_table(student, teacher)
                return student
            student = self.origin.cut(teacher, self.shape.layers)
            if self.narrow:
                wide, student = student, self.origin.assemble(replace(self, shape=self._all_heads()).config())
                student.load_state_dict(narrow(wide, student, self._bases(), neurons))
            if heads is not None:
                fewer_heads.remove(student, heads)
            return student

    def _all_heads(self) -> Shape:
        return replace(self.shape, kept_heads=None)

    def build(self, weights: Mapping[str, Tensor] | None) -> PreTrainedModel:
        """The student with these weights over the compact vocabulary, in training mode; without, at random."""
        if not self.options.recurrent:
            return self.origin.assemble(self.config(), weights)
        from limbeck.recurrent import RecurrentForSequenceClassification

        config: Any = self.origin.compact(self.config())
        student = RecurrentForSequenceClassification(config)
        if weights is not None:
            student.load_state_dict(dict(weights))
        quicken_dropout(student)
        if self.origin.task.kind == "value":
            make_exact(student, "classifier")
        return student

    def save(self, student: PreTrainedModel, folder: Path) -> None:
        """Write the student as a Hugging Face folder; where it is trimmed, with the compact vocabulary."""
        if not self.origin.reads_tokens:
            self.origin.save(student, folder)
            return
        if not self.trimmed:
            write_model(student, folder, self.origin.vocabulary, self._table(), self.origin.config.pad_token_id)
            return
        config = copy.deepcopy(student.config)
        config.update(_token_ids(self.origin.config))
        renumber_config(config, self.origin.vocabulary.kept)
        write_as_it_is(student, config, folder)

    def _take_table(self, student: PreTrainedModel, teacher: Mapping[str, Tensor]) -> None:
        """The teacher's words for a recurrent student, projected where its table is narrower."""
        name = next(filter(_is_table, teacher))
        with torch.no_grad():
            word_table(student).copy_(self._bases().rows(teacher[name].detach().cpu()))

    def _bases(self) -> Bases:
        """From the folder as it came and not from the fine-tuned weights: what is saved needs them once more."""
        encoder = self.origin.original()
        kept = torch.from_numpy(self.origin.vocabulary.kept)
        if self.options.recurrent:
            words = word_table(encoder)
            own, wanted = words.shape[1], self.shape.embedding_size
            return Bases(None, Basis.of([words[kept]], wanted) if wanted != own else None, own, own)
        return Bases.find(encoder, kept, self.shape.hidden_size, self.shape.embedding_size)

    def _table(self) -> Tensor:
        """The whole word table as it would be without training, (full size, width): rows that no text uses keep it."""
        own = word_table(self.origin.original())
        if self.options.start == "random":
            drawn = torch.Generator().manual_seed(self.seed)
            return torch.randn(len(own), self.shape.embedding_size, generator=drawn) * _SPREAD
        return own if self.options.source is not None else self._bases().rows(own)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            yield


def _require_text_labels(options: Student, teacher: Blueprint) -> None:
    from transformers import AutoModelForSequenceClassification

    if teacher.task.model_class() is not AutoModelForSequenceClassification:
        detail = (
            f"found {options.architecture!r}, which answers for a text as a whole; the task {teacher.task.type} asks "
            "for more: take 'transformer'"
        )
        raise InvalidConfig(f"/student/architecture: {detail}", [Problem("/student/architecture", detail)])


def _is_table(name: str) -> bool:
    return name.endswith(("word_embeddings.weight", "tok_embeddings.weight"))


def _token_ids(config: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name.endswith("_token_id")}
