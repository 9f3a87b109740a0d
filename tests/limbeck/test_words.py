"""Where a text is cut into words before a student tags them."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from limbeck.runtime.encoding import Encoder
from limbeck.runtime.student import StudentFacts
from limbeck.runtime.words import words
from tests.limbeck.task_data import examples
from tests.tiny import vocabulary


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "O'Brien met @jack at 7:30, in St-Denis.",
            ["O'Brien", "met", "@jack", "at", "7:30", ",", "in", "St-Denis", "."],
        ),
        ('("Really?!" he said...)', ["(", '"', "Really", "?", "!", '"', "he", "said", "...", ")"]),
        ("Jack's dog isn't the Jones' one", ["Jack", "'s", "dog", "isn't", "the", "Jones", "'", "one"]),
        ("the U.S. and J. Smith.", ["the", "U.S.", "and", "J.", "Smith", "."]),
        ("see https://t.co/a?b=1&c=2, #tag!", ["see", "https://t.co/a?b=1&c=2", ",", "#tag", "!"]),
        ("he came—late :) <3 &amp; 's ...", ["he", "came", "—", "late", ":)", "<", "3", "&amp;", "'s", "..."]),
        (".'s It is ?’s!", [".", "'s", "It", "is", "?", "’s", "!"]),
        ("在北京2008年，iPhone 手机 OK。", [*"在北京2008年，iPhone", "手", "机", *"OK。"]),
        ("東京タワー", list("東京タワー")),
        ("  two\t\n words\u3000here ", ["two", "words", "here"]),
        ("", []),
        (" ", []),
    ],
)
def test_words_are_those_of_lists_of_tokens(text: str, expected: list[str]) -> None:
    """Guards names that a tokenizer cuts at their marks, and the marks around a word, which such lists have apart."""
    assert cut(text) == expected


def test_words_stand_in_order_and_cover_all_but_the_blanks() -> None:
    text = " ".join(token for row in examples("token_classification", 60) for token in row["tokens"]) + " ((a's''s).)"
    found = words(text)
    assert all(start < end for start, end in found)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(found))
    assert "".join(cut(text)) == "".join(text.split())


def test_words_of_any_marks_have_their_places_in_the_text() -> None:
    """Guards against an entity from a place that is none, such as -1: of marks in front of an 's nothing is left."""
    draw = random.Random(1)
    for _ in range(20_000):
        text = "".join(draw.choices(".,;:!?…()[]\"'’s Sab1_—`“”«»¿-中", k=draw.randint(1, 9)))
        ends = [0, *(place for span in words(text) for place in span), len(text)]
        assert ends == sorted(ends), text
        assert all(start < end for start, end in words(text)), text


def test_a_list_of_tokens_joined_by_blanks_is_cut_into_these() -> None:
    rows = [row["tokens"] for row in examples("token_classification", 60)]
    assert [cut(" ".join(tokens)) for tokens in rows] == rows


@pytest.mark.parametrize(
    "text", ["(" * 50_000 + "a", "a" + "!?" * 50_000, "a" + ".," * 50_000, "a" + "'s" * 50_000, "a." * 50_000]
)
def test_a_long_word_takes_no_time(text: str) -> None:
    """Guards the service against an input whose time grows with the square of its length."""
    begun = time.perf_counter()
    words(text)
    assert time.perf_counter() - begun < 2


def test_pieces_know_their_characters_in_the_text() -> None:
    """Guards offsets, which a tokenizer counts from the beginning of each word where it is given words."""
    pieces = {piece: number for number, piece in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", pieces["[SEP]"]), ("[CLS]", pieces["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    text = "The  O'Brien's (file), read."
    (found,) = Encoder(tokenizer, StudentFacts(("O",), 64, False, 0)).trace([text])
    assert found.spans == words(text)
    for token, number, (start, end) in zip(found.tokens, found.words, found.offsets, strict=True):
        if number is None:
            assert (start, end) == (0, 0)
        else:
            assert text[start:end].lower() == token.removeprefix("##")
            assert found.spans[number][0] <= start < end <= found.spans[number][1]
    firsts = [
        place for place, number in enumerate(found.words) if number is not None and found.words[place - 1] != number
    ]
    assert [found.offsets[place][0] for place in firsts] == [start for start, _ in found.spans]
