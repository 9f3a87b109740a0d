"""Contexts in windows, as training and serving cut them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from limbeck.batches import Collator
from limbeck.data import Split
from limbeck.runtime.windows import Span, Windows, best_spans, merged, named
from limbeck.students import Blueprint, read_config
from limbeck.tasks.question_answering import QuestionAnswering
from limbeck.tokenizing import load_tokenizer
from limbeck.vocabulary import Vocabulary
from tests.families import FAMILIES, tokenizer_of, write_tiny
from tests.tiny import write_tiny_bert

TASK = QuestionAnswering()


def test_a_context_of_which_nothing_is_read_breaks_no_training_off(tmp_path: Path) -> None:
    """Guards a job over thousands of questions against one whose context is a space that takes no room."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_tiny_bert(tmp_path / "tiny", layers=1))
    contexts = ["Return the open socket.", "\u200b"]
    split = Split(["What is returned?"] * 2, contexts, [[("socket", 16)], [("\u200b", 0)]])
    task = QuestionAnswering()
    data = task.encode(tokenizer, split, [], 32, lambda: None)
    assert data.labels[0].all()
    assert data.labels[1].tolist() == [0, 0], "as a window without the answer"
    found = task.predictions(np.zeros((int(data.starts[-1]), 2), dtype=np.float32), data)
    assert found[0]
    assert found[1] == ""


def test_the_spans_of_several_windows_are_each_named_once() -> None:
    spans = [Span(4, 9, 1.0), Span(0, 3, 2.0), Span(4, 9, 3.0), Span(1, 3, 2.0)]
    assert merged(spans, 2) == [Span(4, 9, 3.0), Span(0, 3, 2.0)]


def test_the_best_spans_are_those_of_all_pairs_of_tokens() -> None:
    """Guards what an answer may be: within one window's context, not longer than 30 tokens, its end not before its
    start. Every pair is tried here; the answers of a shortcut would look like answers."""
    draw, windows, every = np.random.default_rng(0), [], {}
    for first in (0, 100):
        logits = draw.normal(0, 3, (45, 2)).astype(np.float32)
        logits[:4] = 50  # the question, whose tokens are no places
        places = np.array([(-1, -1)] * 4 + [(first + 2 * n, first + 2 * n + 1) for n in range(41)], dtype=np.int32)
        logits[6, 0] = logits[44, 1] = 40  # a likely start and a likely end that are too far from each other
        windows.append((logits, places))
        for start in range(4, 45):
            for end in range(start, min(start + 30, 45)):
                every[places[start, 0], places[end, 1]] = float(logits[start, 0] + logits[end, 1])
    expected = sorted(every.items(), key=lambda one: -one[1])[:20]
    found = best_spans(windows)
    assert [(one.start, one.end) for one in found] == [place for place, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score in expected])


def test_the_scores_of_answers_are_shares_of_all_candidates() -> None:
    """Guards scores that sum to 1 over those that are shown instead of all, or without the logarithm."""
    spans = [Span(0, 4, 2.0 + np.log(3)), Span(5, 9, 2.0), Span(0, 9, -1e9)]
    (best,) = named(spans, "open door", 1)
    assert best == {"score": pytest.approx(0.75), "start": 0, "end": 4, "answer": "open"}


@pytest.mark.parametrize("length", [8, 9, 12])
def test_short_windows_get_on_beside_four_special_tokens(length: int) -> None:
    """Guards pairs of RoBERTa's kind at the shortest length that is allowed: the tokenizers' library panicked, which no
    except clause of ours catches."""
    pieces = {piece: number for number, piece in enumerate(["<s>", "</s>", "[UNK]", *"abcd"])}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    context = " ".join("abcd" * 3)
    (found,) = Windows(tokenizer, length).encode(["a b c d a"], [context])
    assert max(map(len, found)) == length
    seen = {start for window in found for start, _ in window.places.tolist() if start >= 0}
    assert seen == set(range(0, len(context), 2))


@pytest.mark.parametrize("answer", ["नमस्ते", "cafe\u0301"])
def test_an_answer_keeps_the_marks_of_its_last_character(answer: str, tmp_path: Path) -> None:
    """Guards against "नमस्त" and "cafe" where a tokenizer strips accents; at the end of a context such an answer was
    taken for one that is not in the window."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_tiny_bert(tmp_path / "tiny", layers=1))
    contexts = [f"{answer} is the last word here.", f"The last word is {answer}"]
    split = Split(["What?"] * 2, contexts, [[(answer, context.index(answer))] for context in contexts])
    task = QuestionAnswering()
    data = task.encode(tokenizer, split, [], 64, lambda: None)
    assert data.labels.all()
    logits = np.zeros((int(data.starts[-1]), 2), dtype=np.float32)
    for row, (start, end) in enumerate(data.labels):
        logits[data.starts[row] + start, 0] = logits[data.starts[row] + end, 1] = 9
    assert task.predictions(logits, data) == [answer] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_no_answer_begins_with_a_blank(family: str) -> None:
    """Guards against " window", which DeBERTa's and ModernBERT's tokens are, and against an answer of blanks alone; a
    label with blanks at its ends is found all the same, also as the first of a window."""
    context = "window  that has the focus"
    (window,) = Windows(tokenizer_of(family).backend_tokenizer, 48).encode(["What?"], [context])[0]
    found = [context[start:end] for start, end in window.places.tolist() if end >= 0]
    assert all(one and one == one.strip() for one in found)
    for text, at in ((" the ", 16), ("window  ", 0)):
        split = Split(["What?"], [context], [((text, at),)])
        data = TASK.encode(tokenizer_of(family), split, (), 48, lambda: None)
        logits = np.zeros((int(data.starts[-1]), 2), dtype=np.float32)
        ((start, end),) = data.labels.tolist()
        logits[start, 0] = logits[end, 1] = 9
        assert TASK.predictions(logits, data) == [text.strip()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_windows_behind_the_first(tmp_path: Path, family: str) -> None:
    """Guards token types that a tokenizer tells of there alone, to models that know a single one (XLM-R)."""
    folder = write_tiny(family, tmp_path, head=False)
    settings = read_config(folder)
    split = Split(["How?"], ["Open a window with a button. " * 8], [(("Open", 0),)])
    data = TASK.encode(load_tokenizer(folder, settings, TASK), split, (), 24, lambda: None)
    assert len(data) > 1
    assert (data.segments is None) == (getattr(settings, "type_vocab_size", 0) < 2)
    blueprint = Blueprint.read(folder, TASK, (), Vocabulary.whole(settings.vocab_size))
    batch = Collator(data, settings.pad_token_id, torch.device("cpu"))(np.arange(len(data)))
    model = blueprint.load_teacher(keep_head=False).eval()
    with torch.inference_mode():
        logits = TASK.answer(model, batch)
    assert torch.isfinite(logits).all()
    assert model.get_submodule(TASK.output_layer(family)).out_features == 2, "which a new head is begun at"
