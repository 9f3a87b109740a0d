"""BiLSTM and BiGRU students: a recurrent network over the teacher's word table.

As in Tang et al. 2019 (Distilling Task-Specific Knowledge from BERT into Simple Neural Networks, arXiv:1903.12136),
with the maximum over time (Conneau et al. 2017, arXiv:1705.02364) in the place of the last states.

transformers has no such model. Importing this module tells its ``Auto…`` classes of it, and a copy travels with a
student as ``recurrent.py``, so that it imports nothing of Limbeck's::

    import recurrent
    from transformers import AutoModelForSequenceClassification

    student = AutoModelForSequenceClassification.from_pretrained("this/folder")

The exported forms need nothing of this.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MODEL_TYPE = "limbeck-recurrent"
#: What this file is called beside a model's weights.
LOADER = "recurrent.py"
#: What a cell computes at each step, in torch's order of its gates.
CELLS = {"bilstm": nn.LSTM, "bigru": nn.GRU}


class RecurrentConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """A recurrent student's shape."""

    model_type = MODEL_TYPE

    vocab_size: int = 30522
    embedding_size: int = 300
    hidden_size: int = 256
    """Units for each direction."""
    num_hidden_layers: int = 1
    cell: str = "bilstm"
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    max_position_embeddings: int | None = None
    type_vocab_size: int = 0
    pad_token_id: int | None = 0


class Bidirectional(nn.Module):
    """Two directions of recurrent layers over texts that are padded at their end.

    The backward direction reads each text from its own last token: padding is behind it in both directions, and changes
    nothing. So a batch answers as its texts do alone, without packing, which no graph could hold.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        cell = CELLS[config.cell]
        widths = [config.embedding_size, *[2 * config.hidden_size] * (config.num_hidden_layers - 1)]
        self.forwards = nn.ModuleList(cell(width, config.hidden_size, batch_first=True) for width in widths)
        self.backwards = nn.ModuleList(cell(width, config.hidden_size, batch_first=True) for width in widths)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:  # (texts, tokens, width), (texts, tokens)
        turned = _turned(mask)
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            states = self.dropout(states)
            left = ahead(states)[0]
            right = _reorder(back(_reorder(states, turned))[0], turned)
            states = torch.cat([left, right], dim=-1)
        return states


def _turned(mask: Tensor) -> Tensor:
    """Places of each text's tokens from its last to its first, padding where it is: (texts, tokens)."""
    places = torch.arange(mask.shape[1], device=mask.device)[None, :].expand(mask.shape)
    lengths = mask.sum(dim=1, keepdim=True)
    return torch.where(places < lengths, lengths - 1 - places, places)


def _reorder(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))


class RecurrentForSequenceClassification(PreTrainedModel):
    """A recurrent student with a head for one label of a text, or of a pair one after the other."""

    config_class = RecurrentConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.encoder = Bidirectional(config)
        self.dense = nn.Linear(2 * config.hidden_size, 2 * config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(2 * config.hidden_size, int(config.num_labels or 0))
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.word_embeddings = value

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits, (texts, classes), and where there are ``labels`` their loss: of numbers and of several labels, which
        ``config.problem_type`` tells, transformers' own, else the cross-entropy."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
        states = self.encoder(self.word_embeddings(input_ids), mask)
        highest = states.masked_fill(mask[:, :, None] == 0, torch.finfo(states.dtype).min).amax(dim=1)
        logits = self.classifier(self.dropout(torch.tanh(self.dense(self.dropout(highest)))))
        loss = None if labels is None else self._loss(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.flatten(), labels.float().flatten())
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
        return nn.functional.cross_entropy(logits, labels)

    def _init_weights(self, module: nn.Module) -> None:
        """All but the word table keeps torch's own start, which grows with the layer's narrowness: that of
        transformers' encoders, which norm every layer's output, lets nothing through here."""
        if isinstance(module, nn.Embedding):
            super()._init_weights(module)  # type: ignore[no-untyped-call]


def save_loader(folder: Path) -> None:
    """Put this file beside a model's weights."""
    shutil.copyfile(__file__, folder / LOADER)


AutoConfig.register(MODEL_TYPE, RecurrentConfig, exist_ok=True)
AutoModelForSequenceClassification.register(RecurrentConfig, RecurrentForSequenceClassification, exist_ok=True)
