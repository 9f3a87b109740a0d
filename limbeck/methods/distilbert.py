"""DistilBERT's triple loss on a task's texts, or on texts alone: answers, masked words, the last states' direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from limbeck.errors import InvalidConfig, Problem
from limbeck.methods.base import Method, Models, Objective, Part, SpecialTokens, Term
from limbeck.methods.patient import require_same_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.capture import Captured
    from limbeck.config import Student
    from limbeck.criterion import Criterion
    from limbeck.tasks.base import Task


class DistilBERT(Method):
    """``5 · T²·KL(T = 2) + 2 · masked words + 1 · (1 - cosine)``, as published, with the task's answers as the first.

    The paper distils from unlabelled text before there is a task, which is the task ``masked_lm``: there the answers
    are the teacher's to hidden tokens, the masked words are learned by the student's own masked-LM head, and the
    student starts from every n-th layer, the first among them. For any other task the texts are the data set's own.
    """

    paper: ClassVar[str | None] = "Sanh et al. 2019, DistilBERT, a distilled version of BERT, arXiv:1910.01108"
    needs: ClassVar[frozenset[str]] = frozenset({"layers", "same_width"})

    looks_inside: ClassVar[bool] = True

    type: Literal["distilbert"] = "distilbert"
    temperature: float = Field(default=2.0, ge=0.1, le=100)
    """T of the soft loss."""
    soft_weight: float = Field(default=5.0, ge=0, le=100)
    """Weight of the teacher's answers."""
    words_weight: float = Field(default=2.0, ge=0, le=100)
    """Weight of the masked words."""
    cosine_weight: float = Field(default=1.0, ge=0, le=100)
    """Weight of the last hidden states' direction."""

    answers: Literal["hidden", "all"] = "hidden"
    """Of ``masked_lm``: whether the soft loss is of hidden tokens alone, or of ``all``, as the paper's; its code has
    both. A logit for each token of the vocabulary at all tokens costs some six times as much."""

    def begin(self, student: Student, task: Task) -> Student:
        return student if student.init or not task.of_words else student.model_copy(update={"init": "skip"})

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        return (_TaskAgnostic if criterion.task.of_words else _Triple)(models, criterion, self)


class _TaskAgnostic(Objective):
    """The paper's own setting: both models read the same hidden tokens, which the task draws."""

    def __init__(self, models: Models, criterion: Criterion, options: DistilBERT) -> None:
        self.module = self.student = models.student
        self.teacher = models.teacher()
        self.criterion, self.options = criterion, options
        require_same_width(int(self.student.config.hidden_size), int(self.teacher.config.hidden_size))

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        import torch

        from limbeck.capture import captured
        from limbeck.matching import cosine_distance

        asked, unit = batch, self.criterion.task.unit
        mask = batch.inputs["attention_mask"]
        if self.options.answers == "all":
            # At hidden places the text has the mask, or another word, and the label what stood there.
            truth = torch.where(batch.labels != -100, batch.labels, batch.inputs["input_ids"])
            asked, unit = replace(batch, labels=truth.masked_fill(mask == 0, -100)), "tokens"
        with captured(self.student) as ours:
            logits = self.criterion.answer(self.student, asked, inside=True)
        with torch.no_grad(), captured(self.teacher) as theirs:
            answers = self.criterion.answer(self.teacher, asked, inside=True)
        soft = self.criterion.soft(
            logits, asked, self.options.temperature, teacher_logits=answers, progress=step / steps
        )
        # Of the places that were asked, in order, those of hidden tokens.
        hidden = (batch.labels != -100)[asked.labels != -100]
        states = [found.hidden(int(model.config.num_hidden_layers)) for found, model in self._both(ours, theirs)]
        return {
            "soft_loss": replace(soft, unit=unit).times(self.options.soft_weight),
            "words_loss": self.criterion.hard(logits[hidden], batch).times(self.options.words_weight),
            "cosine_loss": Term(cosine_distance(states[0], states[1], mask), self.options.cosine_weight, "tokens"),
        }

    def _both(self, ours: Captured, theirs: Captured) -> tuple[tuple[Captured, PreTrainedModel], ...]:
        return (ours, self.student), (theirs, self.teacher)


class _Triple(Objective):
    """Any other task: its answers, words of its texts, and the last states."""

    def __init__(self, models: Models, criterion: Criterion, options: DistilBERT) -> None:
        from torch import nn

        from limbeck.masked_words import MaskedWords

        self.student, self.teacher = models.student, models.teacher()
        self.criterion, self.options = criterion, options
        require_same_width(int(self.student.config.hidden_size), int(self.teacher.config.hidden_size))
        self.words = MaskedWords(self.student, _tokens(models), models.seed)
        self.module = nn.ModuleDict({"student": self.student, "words": self.words.head})

    def losses(self, batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
        import torch

        from limbeck.capture import captured
        from limbeck.matching import cosine_distance

        last = int(self.student.config.num_hidden_layers)
        with captured(self.student) as ours:
            logits = self.criterion.answer(self.student, batch, inside=True)
        with torch.no_grad(), captured(self.teacher) as theirs:
            self.teacher.base_model(**batch.inputs)
        there = theirs.hidden(int(self.teacher.config.num_hidden_layers))
        cosine = cosine_distance(ours.hidden(last), there, batch.inputs["attention_mask"])
        soft = self.criterion.soft(logits, batch, self.options.temperature, progress=step / steps)
        return {
            "soft_loss": soft.times(self.options.soft_weight),
            "words_loss": Term(self.words.loss(batch, step), self.options.words_weight, "tokens"),
            "cosine_loss": Term(cosine, self.options.cosine_weight, "tokens"),
        }


def _tokens(models: Models) -> SpecialTokens:
    """
    Raises:
        InvalidConfig: the tokenizer has no mask.
    """
    found = models.tokens()
    if found.mask is None:
        detail = "found 'distilbert', which masks words, and a teacher whose tokenizer has no mask token: take kd"
        raise InvalidConfig(f"/method: {detail}", [Problem("/method", detail)])
    return found
