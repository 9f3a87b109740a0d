"""DistilBERT's triple loss on a task's texts, or on texts alone: answers, masked words, the last states' direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from limbeck.errors import InvalidConfig, Problem
from limbeck.methods.base import Method, Models, Objective, Part, Term
from limbeck.methods.patient import require_same_width

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.capture import Captured
    from limbeck.config import Student
    from limbeck.criterion import Criterion
    from limbeck.tasks.base import Task

#: BERT's rule: so many tokens are to be guessed; of those, so many are masked and so many are some other word.
_GUESSED, _MASKED, _OTHER = 0.15, 0.8, 0.1


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
    def __init__(self, models: Models, criterion: Criterion, options: DistilBERT) -> None:
        from torch import nn

        self.student, self.teacher = models.student, models.teacher()
        self.criterion, self.options, self.seed = criterion, options, models.seed
        ours, theirs = self.student.config, self.teacher.config
        require_same_width(int(ours.hidden_size), int(theirs.hidden_size))
        self.mask_id, self.special = _tokens(models)
        count, width = self.table.shape
        self.words = _words(int(ours.hidden_size), count, width)
        self.module = nn.ModuleDict({"student": self.student, "words": self.words})

    @property
    def table(self) -> Tensor:  # (words, width)
        table: Any = self.student.get_input_embeddings()
        weight: Tensor = table.weight
        return weight

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
            "words_loss": Term(self._words_loss(batch, step), self.options.words_weight, "tokens"),
            "cosine_loss": Term(cosine, self.options.cosine_weight, "tokens"),
        }

    def _words_loss(self, batch: Batch, step: int) -> Tensor:
        """Cross-entropy of the guessed tokens, divided by 15 % of all tokens.

        Not by as many as were drawn: parts of a batch could not be weighed by their tokens then, and an empty draw
        would divide by nothing. Special tokens count among all and are never guessed, so that the mean is a little
        light: by 2 of the 10 tokens of a text of 8 words, by 2 of 128 of a long one.
        """
        import torch.nn.functional as F

        from limbeck.capture import captured

        ids, guessed = self._masked(batch, step)
        with captured(self.student) as found:
            self.student.base_model(**batch.inputs | {"input_ids": ids})
        states = self.words(found.hidden(int(self.student.config.num_hidden_layers))[guessed])
        scores = F.linear(states, self.table, self.words.bias)  # tied, as BERT's own
        losses = F.cross_entropy(scores.float(), batch.inputs["input_ids"][guessed], reduction="sum")
        return losses / (_GUESSED * batch.counts["tokens"])

    def _masked(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The texts with words masked or exchanged, and where they are to be guessed: drawn for each example from its
        place, the seed and the step, so that parts of a batch, ranks and a resumed run have the same."""
        import torch

        from limbeck.draws import drawn

        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert batch.places is not None
        numbers = torch.from_numpy(drawn(batch.places, ids.shape[1], 3, seed=self.seed, step=step))
        chance, kind, other = numbers.to(ids.device, torch.float32)
        word = (other * len(self.table)).long().clamp_max(len(self.table) - 1)
        guessed = (chance < _GUESSED) & (mask > 0) & ~torch.isin(ids, self.special.to(ids.device))
        changed = torch.where(kind < _MASKED, self.mask_id, torch.where(kind < _MASKED + _OTHER, word, ids))
        return torch.where(guessed, changed, ids), guessed


def _tokens(models: Models) -> tuple[int, Tensor]:
    """The mask's id and all special ids.

    Raises:
        InvalidConfig: the tokenizer has no mask.
    """
    import torch

    found = models.tokens()
    if found.mask is None:
        detail = "found 'distilbert', which masks words, and a teacher whose tokenizer has no mask token: take kd"
        raise InvalidConfig(f"/method: {detail}", [Problem("/method", detail)])
    return found.mask, torch.tensor(found.special)


def _words(width: int, vocabulary: int, table_width: int) -> Any:
    """BERT's masked-LM head without its decoder, which is the student's own table; with a bias for each word."""
    import torch
    from torch import nn

    class Words(nn.Sequential):
        bias: nn.Parameter

    words = Words(nn.Linear(width, table_width), nn.GELU(), nn.LayerNorm(table_width))
    words.bias = nn.Parameter(torch.zeros(vocabulary))
    return words
