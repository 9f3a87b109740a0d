"""What a trimmed tokenizer keeps, by hand: words that no text had fall to pieces, and are not unknown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.data.corpus import Split
from limbeck.trimming import kept_ids, renumber_config, trimmed, whole_ids

WORDPIECE = ["[PAD]", "[UNK]", "ab", "abba", "a", "b", "##a", "##b", "##ab"]
BPE = ["[PAD]", "[UNK]", "a", "b", "c", "ab", "bc", "abc", "ca"]
UNIGRAM = [("[PAD]", 0.0), ("[UNK]", 0.0), ("a", -3.0), ("b", -3.5), ("ab", -1.0), ("ba", -9.0), ("bb", -5.0)]


def tokenizer_of(kind: str) -> Any:
    model: Any
    if kind == "WordPiece":
        model = models.WordPiece({piece: i for i, piece in enumerate(WORDPIECE)}, unk_token="[UNK]")
    elif kind == "BPE":
        merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "a")]
        model = models.BPE({piece: i for i, piece in enumerate(BPE)}, merges, unk_token="[UNK]")
    else:
        model = models.Unigram(UNIGRAM, 1, False)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize(
    ("kind", "used", "gone", "unseen", "expected"),
    [
        ("WordPiece", "ab", ["abba", "##ab"], "ba abba", ["b", "##a", "ab", "##b", "##a"]),
        ("BPE", "abc", ["bc", "ca"], "cba abca", ["c", "b", "a", "abc", "a"]),
        ("Unigram", "ab", ["bb"], "bb", ["b", "b"]),
    ],
)
def test_words_that_no_text_had_fall_to_single_characters(
    kind: str, used: str, gone: list[str], unseen: str, expected: list[str]
) -> None:
    """Guards a student that is served other texts than it was trained on: without the single characters, or without
    what joining makes on its way, their words are unknown to it."""
    whole = tokenizer_of(kind)
    small = trimmed(whole, kept_ids(whole, np.array(whole(used)["input_ids"])))
    assert small.tokenize(used) == whole.tokenize(used) == [used]
    assert not set(gone) & set(small.get_vocab())
    assert small.tokenize(unseen) == expected


def test_the_price_of_an_unknown_character_stays() -> None:
    """Guards Unigram's cuts around an unknown character, whose price hangs on the least likely piece."""
    whole = tokenizer_of("Unigram")
    kept = kept_ids(whole, np.array(whole("ab")["input_ids"]))
    assert "ba" in trimmed(whole, kept).get_vocab()


def test_texts_are_used_whole() -> None:
    """Guards what stands behind the cut, the second texts of pairs, and lists of tokens."""
    tokenizer = tokenizer_of("WordPiece")
    tokenizer.backend_tokenizer.enable_truncation(1)

    def used(split: Split) -> list[str]:
        return [WORDPIECE[number] for number in whole_ids(tokenizer, split, lambda: None)]

    assert used(Split(["ab abba"], None, [0])) == ["ab", "abba"]
    assert used(Split(["ab"], ["ab b"], [0])) == ["ab", "b"]
    assert used(Split(["b b"], None, [[0, 0]], tokens=[("ab", "abba")])) == ["ab", "abba"]
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 1


def test_special_tokens_are_renumbered_in_the_configuration_and_those_that_are_gone_have_none() -> None:
    """Guards whoever generates, pads or masks by config.json: the whole vocabulary's ids are other words here."""
    config = SimpleNamespace(
        vocab_size=100, pad_token_id=3, eos_token_id=[7, 8], sep_token_id=8, bos_token_id=None, num_labels=3
    )
    renumber_config(config, np.array([0, 3, 7]))
    assert vars(config) == {
        "vocab_size": 3,
        "pad_token_id": 1,
        "eos_token_id": [2],
        "sep_token_id": None,
        "bos_token_id": None,
        "num_labels": 3,
    }
