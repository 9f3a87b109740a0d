"""Where each family of models keeps the parts that Limbeck handles, and what it offers to methods.

transformers gives all of them ``base_model`` and ``get_input_embeddings()``; only these names differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from limbeck.errors import InvalidModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ROBERTA = ("lm_head.dense", "lm_head.decoder")
_BERT = ("attention.self.query", "attention.self.key", "attention.self.value")


@dataclass(frozen=True, slots=True)
class Family:
    """Names of modules and parameters, and facts that methods and the export have to know."""

    reads: Literal["text", "image"] = "text"
    """What its models are given: tokens, or the pixels of an image."""
    stages: bool = False
    """Whether it is made of stages of residual blocks (``limbeck/stages.py``) and has no layers as transformers do."""
    normalises_batches: bool = False
    """Whether an example's answer in training hangs on the others of its batch."""
    layers: str = "encoder.layer"
    """The list of layers, within the base model. Where ``shared``, the one layer that is applied again and again."""
    shared: bool = False
    """Whether all layers are one: a hook on it is called once for each application, in their order."""
    output: str = "classifier"
    """The last linear layer of the classification head, within the whole model."""
    words: tuple[str, str] = ("cls.predictions.transform.dense", "cls.predictions.decoder")
    """The first and the last linear layer of the masked-LM head, within the whole model."""
    projections: tuple[str, ...] = _BERT
    """The linear layers that make queries, keys and values of the hidden states, within a layer. A single name is one
    layer for all three: its output holds the queries first, then the keys, then the values."""
    mixing: str = "attention.output.dense"
    """The linear layer that mixes the heads' answers, within a layer."""
    neurons: tuple[str, str] = ("intermediate.dense", "output.dense")
    """The linear layers of the feed-forward part, within a layer: to the neurons, and back."""
    gated: bool = False
    """Whether the first of ``neurons`` gives every neuron's input first, and then every neuron's gate."""
    rotary: bool = False
    """Whether positions are turned into queries and keys after the projections, so that a projection's output alone
    does not say what attends to what."""
    windowed: bool = False
    """Whether some layers see a window around each token only (``config.layer_types``)."""
    offset: bool = False
    """Whether positions are counted from behind that of the padding token."""
    fused_export: bool = True
    """Whether its attention is ONNX Runtime's ``Attention`` operator; else it is exported as it is."""

    @property
    def loses_heads(self) -> bool:
        """Whether single heads can go (``limbeck/fewer_heads.py``): positions reach its attention with the hidden
        states alone, and its code takes the number of heads from what the projections give."""
        return self.fused_export and not self.shared


FAMILIES = {
    "bert": Family(),
    "distilbert": Family(
        layers="transformer.layer",
        words=("vocab_transform", "vocab_projector"),
        projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        mixing="attention.out_lin",
        neurons=("ffn.lin1", "ffn.lin2"),
    ),
    "electra": Family(output="classifier.out_proj", words=("generator_predictions.dense", "generator_lm_head")),
    "roberta": Family(output="classifier.out_proj", words=_ROBERTA, offset=True),
    "xlm-roberta": Family(output="classifier.out_proj", words=_ROBERTA, offset=True),
    "albert": Family(
        layers="encoder.albert_layer_groups.0",
        shared=True,
        words=("predictions.dense", "predictions.decoder"),
        projections=tuple(f"albert_layers.0.attention.{name}" for name in ("query", "key", "value")),
        mixing="albert_layers.0.attention.dense",
        neurons=("albert_layers.0.ffn", "albert_layers.0.ffn_output"),
    ),
    "deberta-v2": Family(
        projections=tuple(f"attention.self.{name}_proj" for name in ("query", "key", "value")), fused_export=False
    ),
    "mpnet": Family(
        output="classifier.out_proj",
        words=_ROBERTA,
        projections=tuple(f"attention.attn.{name}" for name in "qkv"),
        mixing="attention.attn.o",
        offset=True,
        fused_export=False,
    ),
    "modernbert": Family(
        layers="layers",
        words=("head.dense", "decoder"),
        projections=("attn.Wqkv",),
        mixing="attn.Wo",
        neurons=("mlp.Wi", "mlp.Wo"),
        gated=True,
        rotary=True,
        windowed=True,
        fused_export=False,
    ),
    **dict.fromkeys(
        ("vit", "deit"),
        Family(
            reads="image",
            layers="layers",
            projections=tuple(f"attention.{name}_proj" for name in "qkv"),
            mixing="attention.o_proj",
            neurons=("mlp.fc1", "mlp.fc2"),
            fused_export=False,
        ),
    ),
    "resnet": Family(
        reads="image", stages=True, normalises_batches=True, output="classifier.1", projections=(), fused_export=False
    ),
}


def families_for(reads: str) -> tuple[str, ...]:
    """The families whose models are given ``text`` or an ``image``."""
    return tuple(name for name, family in FAMILIES.items() if family.reads == reads)


def depth_of(config: Any) -> int:
    """A configuration's layers; of a network in stages its residual blocks."""
    return sum(config.depths) if hasattr(config, "depths") else int(config.num_hidden_layers)


def width_of(config: Any) -> int:
    """The width of what the last layer gives."""
    return int(config.hidden_sizes[-1] if hasattr(config, "depths") else config.hidden_size)


def pad_id_of(config: Any) -> int:
    """The padding token's id; 0 where there is none, or no tokens at all."""
    return int(getattr(config, "pad_token_id", None) or 0)


def has_states(model_type: str) -> bool:
    """Whether a model's layers pass on a sequence of hidden states that can be compared with a teacher's."""
    family = FAMILIES.get(model_type)
    return family is not None and not family.stages


def family_of(model_type: str) -> Family:
    """
    Raises:
        InvalidModel: the family's layers are not known, so that no student can be cut from it.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        raise InvalidModel(
            f"The teacher is of the type {model_type!r}, whose layers Limbeck cannot take apart yet; allowed: {known}."
        )
    return family


def require_plain(config: PreTrainedConfig) -> None:
    """
    Raises:
        InvalidModel: a member of a known family that is built otherwise than all that were published of it.
    """
    groups = getattr(config, "num_hidden_groups", 1), getattr(config, "inner_group_num", 1)
    if groups != (1, 1):
        raise InvalidModel(
            f"The teacher is an ALBERT of {groups[0]} groups of {groups[1]} layers each; allowed: one layer that all "
            "share (num_hidden_groups 1, inner_group_num 1)."
        )
    if getattr(config, "kept_heads", None) is not None:
        raise InvalidModel(
            f"The model is a student whose layers keep {config.kept_heads} of {config.num_attention_heads} heads "
            "(student.prune.heads), which nothing can be cut from; take one with all of them."
        )
