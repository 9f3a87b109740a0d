"""More training texts: what a copy looks like, that none is a held-out text, and what a job makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from limbeck.augmentation import MaskReplace, SentenceShuffle
from limbeck.batches import Encoded, encode
from limbeck.callbacks import Callbacks
from limbeck.checkpoint import CheckpointStore
from limbeck.config import DistillConfig, Training, Unlabelled
from limbeck.copies import enlarge, sentences, shuffled
from limbeck.data import Split, load
from limbeck.engine import distill
from limbeck.errors import InvalidConfig, InvalidDataset
from limbeck.mask_replace import by_neighbours, filler, makes, replaceable, replaced, whole_words
from limbeck.preparation import prepare
from limbeck.reading import read_data
from limbeck.run import Run
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.teachers import find_teachers
from tests.limbeck.bench import Recorder
from tests.tiny import docstrings, vocabulary, write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_tiny_bert(folder / "teacher")
    write_tiny_dataset(folder / "data", rows=96, labels=LABELS)
    return folder


def job(place: Path, augmentation: Any, **changes: Any) -> DistillConfig:
    document: dict[str, Any] = {
        "teacher": {"source": f"path:{place / 'teacher'}", "finetune": {"epochs": 2, "learning_rate": 3e-3}},
        "dataset": f"path:{place / 'data'}",
        "student": [1, 3],
        "training": {
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "max_length": 32,
            "augmentation": augmentation,
        },
        "export": [],
    }
    return DistillConfig.parse({**document, **changes})


def test_sentences_end_at_marks_of_either_script_but_not_within_a_number() -> None:
    assert sentences("It is 3.14! Is it? Yes.") == ["It is 3.14!", "Is it?", "Yes."]
    assert sentences("你好。很好！真的？是；对") == ["你好。", "很好！", "真的？", "是；", "对"]
    assert sentences("他说：“好。”走了。") == ["他说：“好。”走了。"]
    assert sentences("First line\nsecond line") == ["First line", "second line"]


def test_a_shuffled_copy_has_the_same_sentences_in_another_order() -> None:
    """Guards the label, and Chinese text, in which nothing separates two sentences."""
    train = Split(["One. Two. Three.", "一。二。三。", "Only one."], None, [0, 1, 1])
    copies = shuffled(train, SentenceShuffle(copies=3), [7])
    assert copies.labels == [0] * 3 + [1] * 3
    assert len(set(copies.texts)) == 6
    assert not set(copies.texts) & set(train.texts)
    for text in copies.texts[:3]:
        assert sorted(text.split()) == ["One.", "Three.", "Two."]
    for text in copies.texts[3:]:
        assert sorted(sentences(text)) == ["一。", "三。", "二。"]
        assert " " not in text
    assert shuffled(train, SentenceShuffle(copies=3), [7]).texts == copies.texts
    assert shuffled(train, SentenceShuffle(copies=3), [8]).texts != copies.texts


def test_sentences_may_be_repeated_and_pairs_stay_pairs() -> None:
    train = Split(["One. Two."], ["Yes. No."], [1])
    copies = shuffled(train, SentenceShuffle(repeats=2), [0])
    assert copies.pairs is not None
    assert sorted(copies.texts[0].split()) == ["One.", "One.", "Two.", "Two."]
    assert sorted(copies.pairs[0].split()) == ["No.", "No.", "Yes.", "Yes."]


def coded(place: Path) -> tuple[Any, list[str], Encoded]:
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    # Long ones, so that each has words to replace.
    texts = sorted(docstrings("gui"), key=lambda text: -len(text.split()))[:20]
    return tokenizer, texts, encode(tokenizer, Split(texts, None, [0] * len(texts)), 32)


def test_only_whole_words_of_one_token_may_be_replaced(place: Path) -> None:
    """Guards the pieces of a word: one replaced alone would leave a word that nobody ever wrote."""
    tokenizer, _, _ = coded(place)
    texts = ["the zzyx, 42"]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(texts)["input_ids"][0])
    words = (
        whole_words(tokenizer, texts, None, 32)
        & (makes(tokenizer, len(tokenizer)) > 0)[tokenizer(texts)["input_ids"][0]]
    )
    assert [token for token, whole in zip(tokens, words, strict=True) if whole] == ["the"]
    assert any(token.startswith("##") for token in tokens)


def test_chinese_is_replaced_token_by_token_whatever_reads_it() -> None:
    """Guards XLM-R, ALBERT and DeBERTa, to which a sentence without blanks is a single word: no copy was made of it.
    And Latin words in the place of Chinese ones."""
    pieces = ["<pad>", "<unk>", "▁", "▁今天", "天气", "很好", "不错", "电影", "▁film", "ing", "。"]
    model = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", pad_token="<pad>")
    texts = ["今天天气很好。", "filming 电影"]
    split = encode(tokenizer, Split(texts, None, [0, 0]), 32)
    kinds = makes(tokenizer, len(tokenizer))
    may = replaceable(whole_words(tokenizer, texts, None, 32), kinds[split.ids])
    tokens = tokenizer.convert_ids_to_tokens(split.ids.tolist())
    assert [token for token, one in zip(tokens, may, strict=True) if one] == ["▁今天", "天气", "很好", "电影"]
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    found = replaced(split, may, MaskReplace(p=1.0), [1], by_neighbours(table, MaskReplace(p=1.0), kinds))
    changed = {tokenizer.convert_ids_to_tokens(int(one)) for one in found.ids[found.ids != split.ids]}
    assert changed
    assert changed <= {"天气", "很好", "不错", "电影"}


def test_a_neighbours_copy_differs_in_about_p_of_its_words_and_in_nothing_else(place: Path) -> None:
    tokenizer, texts, split = coded(place)
    kinds = makes(tokenizer, len(tokenizer))
    words = whole_words(tokenizer, texts, None, 32) & (kinds[split.ids] > 0)
    spec = MaskReplace(copies=3, p=0.3, candidates=4)
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    found = replaced(split, words, spec, [1], by_neighbours(table, spec, kinds))
    whole = split.take(np.repeat(np.arange(len(split)), 3))
    assert np.array_equal(found.lengths, whole.lengths)
    changed = found.ids != whole.ids
    free = np.concatenate([np.tile(words[a:b], 3) for a, b in zip(split.starts, split.starts[1:], strict=False)])
    assert not changed[~free].any()
    assert changed[free].mean() == pytest.approx(0.3, abs=0.05)
    # By hand: the four nearest by cosine among the words, the word itself left out.
    likeness = torch.nn.functional.cosine_similarity(table[:, None], table[None, :], dim=2)
    likeness[:, torch.from_numpy(kinds == 0)] = -2
    likeness.fill_diagonal_(-2)
    near = likeness.topk(4, dim=1).indices.numpy()
    assert all(new in near[old] for new, old in zip(found.ids[changed], whole.ids[changed], strict=True))
    again = replaced(split, words, spec, [1], by_neighbours(table, spec, kinds))
    assert np.array_equal(found.ids, again.ids)


def test_a_masked_lm_heads_own_words_take_the_places(place: Path, tmp_path: Path) -> None:
    """Guards the head's use: with a bias that knows three words alone, these are what the copies have."""
    tokenizer, texts, split = coded(place)
    config = BertConfig(
        vocab_size=len(vocabulary()), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = BertForMaskedLM(config)
    wanted = tokenizer.convert_tokens_to_ids(["return", "window", "line"])
    with torch.no_grad():
        model.cls.predictions.bias[wanted] = 50.0
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("##s")] = 99.0
    model.save_pretrained(tmp_path / "mlm")
    kinds = makes(tokenizer, len(tokenizer))
    words = whole_words(tokenizer, texts, None, 32) & (kinds[split.ids] > 0)
    spec = MaskReplace(p=0.5, candidates=2)
    run = Run(job(place, []), tmp_path / "run", Callbacks(), 60)
    before = split.ids.copy()
    found = replaced(split, words, spec, [1], filler(tmp_path / "mlm", tokenizer, spec, kinds, run))
    assert np.array_equal(split.ids, before)
    assert np.array_equal(found.lengths, split.lengths)
    changed = found.ids != split.ids
    assert set(found.ids[changed].tolist()) <= set(wanted)
    assert not changed[~words].any()
    # The word itself is never drawn: where a masked word was one of the three, it is another now.
    assert changed[words].mean() == pytest.approx(0.5, abs=0.08)


def test_no_copy_is_a_held_out_text(place: Path, tmp_path: Path) -> None:
    """Guards the test split: a text in another order may be one that somebody else wrote."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {
        "train": (["Apples fall. Pears too.", "Boats sink. Ships too."] * 8, ["a", "b"] * 8),
        "validation": (["Pears too. Apples fall.", "Cars stop."], ["a", "b"]),
        "test": (["Ships too. Boats sink.", "Cars go."], ["a", "b"]),
    }
    for split, (texts, labels) in rows.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), folder / f"{split}.parquet")
    config = job(place, ["sentence_shuffle"], dataset=f"path:{folder}")
    corpus = load(config.dataset, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    whole = {name: encode(tokenizer, getattr(corpus, name), 32) for name in ("train", "validation", "test")}
    run = Run(config, tmp_path / "run", Callbacks(), 60)
    found = enlarge(run, corpus, SequenceClassification(), whole, place / "teacher", tokenizer, {})
    assert (found.held_out, len(found.train), found.counts) == (16, 16, {"sentence_shuffle": 0})


@pytest.mark.parametrize("kind", ["sentence_shuffle", "mask_replace", "unlabelled"])
def test_a_vocabulary_is_trimmed_beside_what_is_added(place: Path, tmp_path: Path, kind: str) -> None:
    """Guards the check that no text is read otherwise: it took every added text for one that is."""
    spec: dict[str, Any] = {"type": kind}
    if kind == "unlabelled":
        pyarrow.parquet.write_table(pyarrow.table({"text": docstrings("testing")[:40]}), tmp_path / "more.parquet")
        spec |= {"source": f"path:{tmp_path}", "split": "more"}
    student = {"layers": [1, 3], "vocabulary": "trimmed"}
    run = Run(job(place, [spec], student=student), tmp_path / "run", Callbacks(), 60)
    read_data(run, find_teachers(run, {}), {}, None, None)
    tensors, stored = run.store.read_tensors("data")
    card = stored["card"]
    assert card["copies"] + card["unlabelled"] > 0
    assert len(tensors["train.starts"]) - 1 == card["train"] + card["copies"] + card["unlabelled"]
    assert len(tensors["vocabulary"]) < len(vocabulary())


def test_a_repeat_expects_the_texts_without_labels_as_they_were(place: Path, tmp_path: Path) -> None:
    """Guards a repeat that learns the teacher's answers on other texts: names stay when files change."""
    extra = {"type": "unlabelled", "source": f"path:{tmp_path}", "split": "more"}
    config = job(place, ["sentence_shuffle", extra])
    part = "training/augmentation/1"
    for number, count in enumerate((40, 40, 41)):
        pyarrow.parquet.write_table(pyarrow.table({"text": docstrings("testing")[:count]}), tmp_path / "more.parquet")
        run = Run(config, tmp_path / str(number), Callbacks(), 60)
        if number == 0:
            prepare(run, {})
            first = run.facts["provenance"]["unlabelled"]
            assert first.keys() == {part}
            assert (first[part]["source"], first[part]["revision"]) == (extra["source"], None)
        elif number == 1:
            prepare(run, {}, {part: first[part]["sha256"]})
        else:
            with pytest.raises(InvalidDataset, match="the data set is no longer the one") as caught:
                prepare(run, {}, {part: first[part]["sha256"]})
            assert caught.value.problems[0].pointer == f"/{part}/source"


def test_what_is_said_of_texts_without_labels_names_them(place: Path, tmp_path: Path) -> None:
    """Guards against "the test split is cut from train" of a job whose own data were not cut."""
    lines = "".join(f"{text.splitlines()[0]}\tx\n" for text in docstrings("testing")[:40])
    (tmp_path / "more.tsv").write_text(f'text\tlabel\n"Late\tx\n{lines}')
    source, said = f"path:{tmp_path}", Recorder()
    config = job(place, {"type": "unlabelled", "source": source, "split": "more"})
    prepare(Run(config, tmp_path / "work", said, 60), {})
    (noted,) = (message for kind, message, _ in said.events if kind == "data.noted")
    assert noted.startswith(f"Of {source}, whose texts of more are read: ")


def test_neurons_are_judged_by_texts_with_a_label(place: Path, tmp_path: Path) -> None:
    """Guards against a job that fails after its teacher's fine-tuning, and against importance by labels of -1."""
    pyarrow.parquet.write_table(pyarrow.table({"text": docstrings("testing")[:40]}), tmp_path / "more.parquet")
    unlabelled = {"type": "unlabelled", "source": f"path:{tmp_path}", "split": "more"}
    found = []
    for number, augmentation in enumerate(([], [unlabelled])):
        said, work = Recorder(), tmp_path / str(number)
        distill(job(place, augmentation, student={"layers": [1, 3], "prune": 0.5}), work, callbacks=said)
        found.append(CheckpointStore(work / "state").read_tensors("pruning")[0]["importance"])
        (pruned,) = (message for kind, message, _ in said.events if kind == "student.pruned")
        assert "on 96 training examples" in pruned
    assert torch.equal(*found)


def test_the_student_learns_from_all_of_it_and_the_rest_from_what_they_can_use(place: Path, tmp_path: Path) -> None:
    """Guards the comparison: the baseline has the copies and as many steps, the teacher the data set alone; texts
    without labels reach the student with the teacher's answers, whatever label their source has."""
    extra = tmp_path / "extra"
    extra.mkdir()
    texts = [*docstrings("testing")[:60], "", *docstrings("testing")[:5]]
    pyarrow.parquet.write_table(pyarrow.table({"sentence": texts, "label": [9] * len(texts)}), extra / "more.parquet")
    unlabelled = {"type": "unlabelled", "source": f"path:{extra}", "split": "more", "limit": 48}
    said = Recorder()
    # Named first and added last: the labelled examples have to stay together.
    result = distill(job(place, [unlabelled, {"type": "mask_replace", "p": 1.0}]), tmp_path / "job", callbacks=said)
    events = {kind: data for kind, _, data in said.events}
    assert events["data.augmented"] == {"mask_replace": 96, "unlabelled": 48, "held_out": 0}
    assert (result.scorecard.dataset.copies, result.scorecard.dataset.unlabelled) == (96, 48)
    assert events["cache.built"]["misses"] == 96 + 96 + 48
    steps = {}
    for step, values in said.points:
        for name in values:
            steps.setdefault(name.partition("/")[0], set()).add(step)
    # 96 and 240 examples by 16 over 2 epochs; the baseline's 192 over 2.5, which ends within its third.
    assert {name: len(found) for name, found in steps.items()} == {"teacher": 12, "distilling": 30, "baseline": 30}
    assert said.counted[-1] == (72, 72)
    ended = [message for kind, message, _ in said.events if kind == "epoch.finished" and "Baseline" in message]
    assert [message.split(":")[0] for message in ended] == [f"Baseline, epoch {n} of 3" for n in (1, 2, 3)]
    assert pyarrow.parquet.read_table(result.hard_samples[0]).num_rows == 96 + 24
    card = (result.student / "README.md").read_text(encoding="utf-8")
    assert "96 altered copies" in card
    assert "48 texts without a label" in card
    assert result.baseline is not None
    assert "without a label" not in (result.baseline / "README.md").read_text(encoding="utf-8")


def test_one_augmentation_needs_no_list() -> None:
    short = Training.model_validate({"augmentation": "mask_replace"})
    assert short.augmentation == (MaskReplace(),)
    assert Training.model_validate(json.loads(short.model_dump_json())) == short
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse({"teacher": "a/b", "dataset": "a/b", "training": {"augmentation": "backtranslation"}})
    assert any("/training/augmentation" in one.pointer for one in caught.value.problems)
    with pytest.raises(ValueError, match="data set is a hub name"):
        Unlabelled.model_validate({"source": "../secrets"})


@pytest.mark.parametrize(
    ("change", "pointer"),
    [({"split": "nope"}, "split"), ({"columns": {"text": "nope"}}, "columns/text"), ({"source": "path:/no"}, "source")],
)
def test_a_source_of_texts_that_cannot_be_read_is_named(
    place: Path, tmp_path: Path, change: dict[str, Any], pointer: str
) -> None:
    config = job(place, {"type": "unlabelled", "source": f"path:{place / 'data'}", **change})
    with pytest.raises(InvalidDataset) as caught:
        distill(config, tmp_path)
    (problem,) = caught.value.problems
    assert problem.pointer.endswith(pointer)
