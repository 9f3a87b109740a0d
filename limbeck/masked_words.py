"""Words of a task's texts that are masked for the student to find, beside what it learns of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.capture import captured
from limbeck.draws import drawn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from limbeck.batches import Batch
    from limbeck.methods.base import SpecialTokens

#: BERT's rule: so many tokens are to be guessed; of those, so many are masked and so many are some other word.
_GUESSED, _MASKED, _OTHER = 0.15, 0.8, 0.1


class WordsHead(nn.Sequential):
    """BERT's masked-LM head without its decoder, which is the student's own table; with a bias for each word."""

    def __init__(self, width: int, table: Tensor) -> None:
        vocabulary, table_width = table.shape
        super().__init__(nn.Linear(width, table_width), nn.GELU(), nn.LayerNorm(table_width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))


class MaskedWords:
    """The loss of a student's masked words.

    Args:
        tokens: with a mask among them.
        seed: of what is masked.
    """

    def __init__(self, student: PreTrainedModel, tokens: SpecialTokens, seed: int) -> None:
        assert tokens.mask is not None
        self.student, self.seed = student, seed
        self._mask, self._special = tokens.mask, torch.tensor(tokens.special)
        #: What is trained beside the student.
        self.head = WordsHead(int(student.config.hidden_size), self._table)

    @property
    def _table(self) -> Tensor:  # (words, width)
        table: Any = self.student.get_input_embeddings()
        weight: Tensor = table.weight
        return weight

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Cross-entropy of the guessed tokens, divided by 15 % of all tokens.

        Not by as many as were drawn: parts of a batch could not be weighed by their tokens then, and an empty draw
        would divide by nothing. Special tokens count among all and are never guessed, so that the mean is a little
        light: by 2 of the 10 tokens of a text of 8 words, by 2 of 128 of a long one.
        """
        ids, guessed = self.masked(batch, step)
        with captured(self.student) as found:
            self.student.base_model(**batch.inputs | {"input_ids": ids})
        states = self.head(found.hidden(int(self.student.config.num_hidden_layers))[guessed])
        scores = F.linear(states, self._table, self.head.bias)  # tied, as BERT's own
        losses = F.cross_entropy(scores.float(), batch.inputs["input_ids"][guessed], reduction="sum")
        return losses / (_GUESSED * batch.counts["tokens"])

    def masked(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The texts with words masked or exchanged, and where they are to be guessed: drawn for each example from its
        place, the seed and the step, so that parts of a batch, ranks and a resumed run have the same."""
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert batch.places is not None
        numbers = torch.from_numpy(drawn(batch.places, ids.shape[1], 3, seed=self.seed, step=step))
        chance, kind, other = numbers.to(ids.device, torch.float32)
        word = (other * len(self._table)).long().clamp_max(len(self._table) - 1)
        guessed = (chance < _GUESSED) & (mask > 0) & ~torch.isin(ids, self._special.to(ids.device))
        changed = torch.where(kind < _MASKED, self._mask, torch.where(kind < _MASKED + _OTHER, word, ids))
        return torch.where(guessed, changed, ids), guessed
