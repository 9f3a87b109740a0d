"""The built-in data set: the same everywhere, and no text that is tested on has a near copy in train."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

from limbeck.config import Dataset
from limbeck.data import load
from limbeck.data.likeness import families


def test_the_areas_are_all_there_and_none_is_rare() -> None:
    corpus = load(Dataset(source="builtin:stdlib-docstrings"), seed=1)
    assert len(corpus.labels) == 12
    assert len(corpus.train) > 4000
    assert all(count >= 50 for count in Counter(corpus.train.labels).values())
    assert all(count >= 15 for split in (corpus.validation, corpus.test) for count in Counter(split.labels).values())
    assert len(set(corpus.validation.labels)) == len(set(corpus.test.labels)) == 12


def test_its_one_label_also_serves_as_several() -> None:
    """Guards against a job that passes every check and dies of labels that are no lists."""
    dataset = Dataset(source="builtin:stdlib-docstrings")
    one, several = load(dataset, seed=1), load(dataset, seed=1, task="multi_label")
    assert (several.task, several.labels) == ("multi_label", one.labels)
    for name in ("train", "validation", "test"):
        split = getattr(several, name)
        assert split.texts == getattr(one, name).texts
        assert split.labels == [(label,) for label in getattr(one, name).labels]
    assert several.sha256 != one.sha256


def test_what_is_tested_on_has_no_near_copy_in_another_split() -> None:
    """Docstrings are written by copying: a score on near copies would measure memory."""
    corpus = load(Dataset(source="builtin:stdlib-docstrings"), seed=1)
    splits = (corpus.train, corpus.validation, corpus.test)
    words = [" ".join(re.findall("[a-z0-9]+", text.lower())) for split in splits for text in split.texts]
    assert len(set(words)) == len(words)
    of_split = [index for index, split in enumerate(splits) for _ in split.texts]
    spread = {(family, split) for family, split in zip(families(words, 7), of_split, strict=True)}
    assert len(spread) == len({family for family, _ in spread})


def test_families_are_those_that_comparing_every_pair_would_give() -> None:
    """Guards the short cut: a pair that it never compares would stand on both sides of a split."""
    texts = [" ".join(sorted(set(text.lower().split()))) for text in _some_texts()]
    sets = [set(text.split()) for text in texts]
    found = families(texts, 6)
    for one in range(len(texts)):
        for two in range(one):
            if 10 * len(sets[one] & sets[two]) >= 6 * len(sets[one] | sets[two]):
                assert found[one] == found[two], (texts[one], texts[two])
    assert 1 < len(set(found)) < len(texts)


def _some_texts() -> list[str]:
    corpus = load(Dataset(source="builtin:stdlib-docstrings"), seed=1)
    return [text for text, label in zip(corpus.train.texts, corpus.train.labels, strict=True) if label == 6][:400]


def test_another_process_finds_the_same() -> None:
    """Hashes of strings and the order of files differ between processes; a resumed job must not notice."""
    code = "from limbeck.data.stdlib_docstrings import load_docstrings; print(load_docstrings().sha256)"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == load(Dataset(source="builtin:stdlib-docstrings"), seed=1).sha256, ran.stderr
