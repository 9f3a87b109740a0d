"""A tiny teacher of every family: random weights, and a tokenizer of the family's own kind, learned from docstrings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tiny import AREAS, docstrings, vocabulary

LABELS = ("gui", "networking", "numbers")
LENGTH = 64
_SIZE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
_OWN: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32},
    "electra": {"embedding_size": 8},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "albert": {"embedding_size": 8},
    # As microsoft/deberta-v3-small has it, which has no convolution; deberta-v2-xlarge has one.
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "conv_kernel_size": 3,
    },
    "mpnet": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}
FAMILIES = tuple(_OWN)


def config_of(family: str, vocab_size: int, pad_token_id: int, **changes: Any) -> Any:
    """A tiny configuration with the labels of :data:`LABELS`."""
    from transformers import AutoConfig

    positions = LENGTH + (2 if family in ("roberta", "xlm-roberta", "mpnet") else 0)
    size = {} if family == "distilbert" else _SIZE
    own = {"max_position_embeddings": positions, "initializer_range": 0.2, **size, **_OWN[family], **changes}
    names = dict(enumerate(LABELS))
    if family == "modernbert":
        own |= {f"{name}_token_id": 0 for name in ("bos", "eos", "cls", "sep")}
    return AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        pad_token_id=pad_token_id,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        **own,
    )


def write_tiny(family: str, folder: Path, *, head: bool | str = True, spare: int = 3, **changes: Any) -> Path:
    """Write a Hugging Face folder; ``head`` may be ``ForMaskedLM``.

    Gains and biases are random as well: at their usual start of 1 and 0 many a mistake would not show. ``spare`` rows
    of the word table belong to no token, as in many a published model.
    """
    import torch
    from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained(folder)
    config = config_of(family, len(tokenizer) + spare, tokenizer.pad_token_id, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kinds = {False: AutoModel, True: AutoModelForSequenceClassification, "ForMaskedLM": AutoModelForMaskedLM}
        model = kinds[head].from_config(config)
        for name, parameter in model.named_parameters():
            # ModernBERT's first norm is uniform: see limbeck/cutting.py.
            if parameter.dim() == 1 and "embeddings.norm" not in name:
                torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    model.save_pretrained(folder)
    return folder


@functools.cache
def texts() -> tuple[str, ...]:
    return tuple(text for area in AREAS for text in docstrings(area)[:60])


@functools.cache
def tokenizer_of(family: str) -> Any:
    from transformers import (
        AlbertTokenizer,
        BertTokenizer,
        DebertaV2Tokenizer,
        MPNetTokenizer,
        PreTrainedTokenizerFast,
        RobertaTokenizer,
        XLMRobertaTokenizer,
    )

    match family:
        case "bert" | "electra" | "distilbert":
            return BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary())}, do_lower_case=True)
        case "mpnet":
            pieces = ["<s>", "<pad>", "</s>", "<unk>", *vocabulary()[1:], "<mask>"]
            return MPNetTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
        case "roberta":
            pieces, merges = _byte_pairs(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
            return RobertaTokenizer(vocab=pieces, merges=merges)
        case "modernbert":
            return _modernbert(PreTrainedTokenizerFast)
        case "xlm-roberta":
            return XLMRobertaTokenizer(vocab=_unigrams(("<s>", "<pad>", "</s>", "<unk>"), ("<mask>",)))
        case "albert":
            return AlbertTokenizer(vocab=_unigrams(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")))
        case _:
            return DebertaV2Tokenizer(vocab=_unigrams(("[PAD]", "[CLS]", "[SEP]", "[UNK]")), unk_id=3)


@functools.cache
def _trained_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _byte_pairs(special: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    pieces, merges = _trained_pairs()
    ranked = sorted(pieces, key=lambda piece: pieces[piece])
    return {piece: i for i, piece in enumerate([*special, *ranked])}, merges


def _modernbert(kind: Any) -> Any:
    """Its special tokens come last, the padding's after all others."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces, merges = _byte_pairs(())
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0", special_tokens=ends
    )
    return kind(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


@functools.cache
def _trained_unigrams() -> list[tuple[str, float]]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=700, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"] if piece != "<unk>"]


def _unigrams(first: Sequence[str], last: Sequence[str] = ()) -> list[tuple[str, float]]:
    special = [(piece, 0.0) for piece in first]
    return [*special, *_trained_unigrams(), *((piece, 0.0) for piece in last)]
