"""Which texts, which teacher and which loss each comparison is made on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: The teacher of each kind: None is the built-in encoder, fine-tuned on SST-2; else a BERT's shape, of random weights.
TEACHERS: Mapping[str, Mapping[str, int] | None] = {
    "minilm": None,
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
}


@dataclass(frozen=True)
class Workload:
    """Texts, and the shapes of teacher and student."""

    name: str
    title: str
    texts: str = "sst2_glue"  #: the data set's folder
    teacher: str = "minilm"
    layers: tuple[int, ...] = (1, 3, 5)  #: the teacher's, that the student starts from
    method: Mapping[str, Any] = field(default_factory=lambda: {"type": "kd"})
    matches: Sequence[Mapping[str, Any]] = ()  #: the method's states, as the other trainers have them
    tokens: int | None = None  #: every text is made of so many, from several; None: as they are

    @property
    def own_labels(self) -> bool:
        """Whether the labels are the data set's: elsewhere they are what the teacher answers."""
        return self.teacher == "minilm" and self.texts == "sst2_glue" and self.tokens is None

    @property
    def max_length(self) -> int:
        return self.tokens or 128


#: Limbeck's ``patient`` and TextBrewer's ``pkd`` are one loss: the mean over the matched layers, with beta 1.
_STATES = tuple({"layer_S": s, "layer_T": t, "loss": "pkd", "weight": 0.5} for s, t in ((1, 2), (2, 4)))

WORKLOADS: Mapping[str, Workload] = {
    one.name: one
    for one in (
        Workload("sst2", "SST-2, logits"),
        Workload("mrpc", "MRPC pairs, logits", "mrpc"),
        Workload("hidden", "SST-2, logits and hidden states", method={"type": "patient"}, matches=_STATES),
        Workload("base", "BERT-base's shape, SST-2, logits", teacher="base", layers=(1, 3, 5, 7, 9, 11)),
    )
}
#: A model so small that what the engine itself costs shows.
TINY = Workload("tiny", "2 layers of width 128, SST-2", teacher="tiny", layers=(1,))


def of_length(tokens: int) -> Workload:
    """Texts of one length alone."""
    return Workload(f"length{tokens}", f"texts of {tokens} tokens", tokens=tokens)
