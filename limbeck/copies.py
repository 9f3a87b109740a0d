"""The training split with what ``training.augmentation`` adds to it, made once while a job prepares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.augmentation import MaskReplace, SentenceShuffle
from limbeck.batches import Encoded, encode
from limbeck.config import Unlabelled
from limbeck.data.unlabelled import load_unlabelled
from limbeck.mask_replace import filler, makes, replaceable, replaced, whole_words
from limbeck.students import read_config

if TYPE_CHECKING:
    from limbeck.data import Corpus, Split
    from limbeck.run import Run
    from limbeck.tasks.base import Task

#: Behind a mark that ends a sentence: at once in Chinese and Japanese, where a space follows elsewhere (3.14 is whole).
_BORDER = re.compile(r"(?<=[。！？；])(?![。！？；”’」』）])|(?<=[.!?;])\s+|(?<=[.!?;][\"')\]])\s+|\s*\n\s*")
#: Draws for a copy that differs from its text and from the copies before it.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Enlarged:
    """A training split: the data set's own examples, their copies with labels, and what has none, in this order."""

    train: Encoded
    originals: int
    labelled: int  #: originals and copies
    held_out: int  #: texts that were left out since they stand in validation or test
    counts: dict[str, int]  #: examples by augmentation
    #: Of texts without labels, by the place of their augmentation in the configuration: what makes a run repeatable.
    sources: dict[str, dict[str, str | None]] = field(default_factory=dict)


def enlarge(
    run: Run,
    corpus: Corpus,
    task: Task,
    whole: Mapping[str, Encoded],
    teacher: Path,
    tokenizer: Any,
    given: Mapping[str, Path],
) -> Enlarged:
    """Add what the configuration asks for to the encoded training split.

    Args:
        whole: the encoded splits, with the tokenizer's own ids.
        teacher: its folder.
        given: folders of ``dataset:…`` references.

    Raises:
        InvalidDataset: a source of extra texts cannot be used.
    """
    own, held_out = whole["train"], set[bytes]()
    for split in ("validation", "test"):
        held_out.update(_keys(whole[split]))
    wanted = list(enumerate(run.config.training.augmentation))
    copies, extra, counts, left_out = [own], list[Encoded](), dict[str, int](), 0
    sources: dict[str, dict[str, str | None]] = {}
    for index, spec in sorted(wanted, key=lambda one: not one[1].has_labels):
        seed = [run.config.training.seed, index]
        if isinstance(spec, SentenceShuffle):
            copied = shuffled(corpus.train, spec, seed)
            found = task.encode(tokenizer, copied, corpus.labels, run.config.training.max_length, run.poll)
        elif isinstance(spec, MaskReplace):
            found = _replaced(spec, seed, own, run, corpus, teacher, tokenizer)
        else:
            at = f"training/augmentation/{index}"
            found, sources[at] = _unlabelled(spec, f"/{at}", run, corpus, tokenizer, given)
            found = _without(found, set(_keys(own)))
        kept = _without(found, held_out)
        if not spec.has_labels:
            # Of the shape of the others' labels; nobody reads them (``Collator.labelled``).
            kept = replace(kept, labels=np.full((len(kept), *own.labels.shape[1:]), -1, dtype=own.labels.dtype))
        left_out += len(found) - len(kept)
        counts[spec.type] = counts.get(spec.type, 0) + len(kept)
        (copies if spec.has_labels else extra).append(kept)
    labelled = sum(map(len, copies))
    return Enlarged(Encoded.join([*copies, *extra]), len(own), labelled, left_out, counts, sources)


def _replaced(
    spec: MaskReplace, seed: list[int], own: Encoded, run: Run, corpus: Corpus, teacher: Path, tokenizer: Any
) -> Encoded:
    kinds = makes(tokenizer, int(read_config(teacher).vocab_size))
    length = run.config.training.max_length
    whole = whole_words(tokenizer, corpus.train.texts, corpus.train.pairs, length)
    fill = filler(teacher, tokenizer, spec, kinds, run)
    return replaced(own, replaceable(whole, kinds[own.ids]), spec, seed, fill)


def _unlabelled(
    spec: Unlabelled, at: str, run: Run, corpus: Corpus, tokenizer: Any, given: Mapping[str, Path]
) -> tuple[Encoded, dict[str, str | None]]:
    """The texts, and their provenance."""
    pair = corpus.train.pairs is not None
    seed = run.config.training.seed
    found = load_unlabelled(spec, pair=pair, at=at, seed=seed, sources=given, poll=run.poll)
    if found.notes:
        run.event("data.noted", f"Of {spec.source}, whose texts of {spec.split} are read: {' '.join(found.notes)}")
    return encode(tokenizer, found.texts, run.config.training.max_length, run.poll), found.provenance()


def _keys(split: Encoded) -> Iterable[bytes]:
    """What makes two examples the same text to a model."""
    for start, end in zip(split.starts, split.starts[1:], strict=False):
        kinds = b"" if split.segments is None else split.segments[start:end].tobytes()
        yield split.ids[start:end].tobytes() + (kinds if any(kinds) else b"")


def _without(split: Encoded, known: set[bytes]) -> Encoded:
    kept = [row for row, key in enumerate(_keys(split)) if key not in known]
    return split if len(kept) == len(split) else split.take(np.array(kept, dtype=np.int64))


def shuffled(train: Split, spec: SentenceShuffle, seed: list[int]) -> Split:
    """Copies of the split's examples with their sentences in another order."""
    draw = np.random.default_rng(seed)
    rows, texts, pairs = list[int](), list[str](), list[str]()
    for row, (text, pair) in enumerate(train.keys()):
        known = {(text, pair)}
        for _ in range(spec.copies):
            for _ in range(_TRIES):
                copy = _shuffle(text, spec.repeats, draw), None if pair is None else _shuffle(pair, spec.repeats, draw)
                if copy not in known:
                    break
            else:
                break
            known.add(copy)
            rows.append(row)
            texts.append(copy[0])
            pairs += [] if copy[1] is None else [copy[1]]
    return replace(train.take(rows), texts=texts, pairs=None if train.pairs is None else pairs)


def sentences(text: str) -> list[str]:
    """The text cut behind the marks that end sentences, Chinese ones as well."""
    return [part for part in _BORDER.split(text) if part and part.strip()]


def _shuffle(text: str, repeats: int, draw: np.random.Generator) -> str:
    parts = sentences(text) * repeats
    order: NDArray[np.int64] = draw.permutation(len(parts))
    joined = ""
    for place in order:
        # Between two sentences stands a space, but none behind a Chinese mark.
        joined += (" " if joined and joined[-1].isascii() else "") + parts[place]
    return joined
