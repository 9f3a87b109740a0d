"""Copies of token ids in which some words are others that would fit there (``mask_replace``).

Only a word that is one token is replaced, by a word that is one token, so that a copy is as long as its text and has
the same borders between words; in Chinese and Japanese, whose words have none, any token of ideographs and kana. Where
the teacher's folder has a masked-LM head, the words to replace are masked and the head is asked, a part of them at a
time, since it has learned with about 15 % of a text masked; else a word's candidates are the nearest rows of the
embedding table, by cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from limbeck.batches import Collator, Encoded, forward_batches
from limbeck.ideographs import IDEOGRAPH

if TYPE_CHECKING:
    from limbeck.augmentation import MaskReplace
    from limbeck.run import Run

#: Share of a text that a masked-LM head sees masked at a time, as in its training.
_MASKED = 0.15
#: Tokens of a batch; each has as many logits as the vocabulary has words.
_TOKENS = 1024
_ROWS = 1024
#: How SentencePiece and byte-level BPE mark a token that begins a word.
_MARKS = "▁Ġ"
#: Of words, with a mark of their beginning and without; the second two of ideographs and kana.
_MAKES = (1, 2, 3, 4)
_IDEOGRAPHIC = 3

Ids = NDArray[np.int32]  # (tokens,)
Places = NDArray[np.bool_]  # (tokens,)
#: The split's ids with other words at the chosen places.
Fill = Callable[[Encoded, Places, np.random.Generator], Ids]


def replaced(split: Encoded, words: NDArray[np.bool_], spec: MaskReplace, seed: list[int], fill: Fill) -> Encoded:
    """The copies of a split, those of its first example first.

    Args:
        words: which tokens may be replaced, (tokens,).
        fill: puts other words in their place.
    """
    draw = np.random.default_rng(seed)
    found, rows = list[Encoded](), list[NDArray[np.int64]]()
    for _ in range(spec.copies):
        chosen = words & (draw.random(len(words)) < spec.p)
        changed = np.array(
            [row for row in range(len(split)) if chosen[split.starts[row] : split.starts[row + 1]].any()],
            dtype=np.int64,
        )
        copy = replace(split, ids=fill(split, chosen, draw))
        found.append(copy.take(changed))
        rows.append(changed)
    return Encoded.join(found).take(np.argsort(np.concatenate(rows), kind="stable"))


def makes(tokenizer: Any, size: int) -> NDArray[np.int8]:
    """Of which make each token of the vocabulary is, (vocabulary,).

    0 is no word: special tokens, continuations, numbers, punctuation. Words with a mark of their beginning and words
    without are two makes, since one in the place of the other would change where words end; so are, once more, those
    of ideographs and kana, from :data:`_IDEOGRAPHIC` on.
    """
    special = set(tokenizer.all_special_ids)
    found = np.zeros(size, dtype=np.int8)
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))):
        bare = token.lstrip(_MARKS)
        if index not in special and bare.isalpha():
            script = _IDEOGRAPHIC - 1 if all(map(IDEOGRAPH.match, bare)) else 0
            found[index] = script + (1 if bare == token else 2)
    return found


def replaceable(whole: Places, of_make: NDArray[np.int8]) -> Places:
    """Which tokens may be replaced: those that are a word by themselves and, as no blank tells where words end in
    Chinese and Japanese, all of ideographs and kana.

    Args:
        whole: as :func:`whole_words` has them.
        of_make: the make of each token.
    """
    return (whole & (of_make > 0)) | (of_make >= _IDEOGRAPHIC)


def whole_words(tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int) -> NDArray[np.bool_]:
    """Which tokens are a word by themselves, (tokens,), over texts that are encoded end to end."""
    found = list[bool]()
    for start in range(0, len(texts), _ROWS):
        others = None if pairs is None else pairs[start : start + _ROWS]
        coded = tokenizer(texts[start : start + _ROWS], others, truncation=True, max_length=max_length)
        for row in range(len(coded["input_ids"])):
            words = list(zip(coded.sequence_ids(row), coded.word_ids(row), strict=True))
            for place, word in enumerate(words):
                neighbours = words[max(0, place - 1) : place + 2]
                found.append(word[1] is not None and neighbours.count(word) == 1)
    return np.array(found, dtype=np.bool_)


def filler(folder: Path, tokenizer: Any, spec: MaskReplace, kinds: NDArray[np.int8], run: Run) -> Fill:
    """What replaces words, by a teacher's folder: its masked-LM head where it has one, else its embedding table."""
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    from limbeck.students import quiet_transformers

    options: dict[str, Any] = {"dtype": "float32", "use_safetensors": True, "local_files_only": True}
    architectures = AutoConfig.from_pretrained(folder, local_files_only=True).architectures or [""]
    with quiet_transformers():
        if architectures[0].endswith("ForMaskedLM") and tokenizer.mask_token_id is not None:
            model = run.device.place(AutoModelForMaskedLM.from_pretrained(folder, **options))
            return by_masked_lm(model, tokenizer.mask_token_id, spec, kinds, run)
        table = AutoModel.from_pretrained(folder, **options).get_input_embeddings().weight.detach()
    return by_neighbours(table, spec, kinds)


def by_neighbours(table: Tensor, spec: MaskReplace, kinds: NDArray[np.int8]) -> Fill:
    """One of the nearest words in an embedding table, (vocabulary, width), each with the same chance."""
    directions = F.normalize(table.float(), dim=1)
    near: dict[int, NDArray[np.int64]] = {}

    def look_up(ids: Ids) -> None:
        for kind in _MAKES:
            wanted = np.array([one for one in np.unique(ids) if kinds[one] == kind and one not in near], np.int64)
            others = np.flatnonzero(kinds == kind)
            for start in range(0, len(wanted), _ROWS):
                block = wanted[start : start + _ROWS]
                likeness = directions[torch.from_numpy(block)] @ directions[torch.from_numpy(others)].T
                likeness[torch.from_numpy(block[:, None] == others[None, :])] = -math.inf
                places = likeness.topk(min(spec.candidates, max(1, len(others) - 1)), dim=1).indices.numpy()
                near.update(zip(block.tolist(), others[places], strict=True))

    def fill(split: Encoded, chosen: Places, draw: np.random.Generator) -> Ids:
        ids = split.ids.copy()
        look_up(ids[chosen])
        for place in np.flatnonzero(chosen):
            ids[place] = draw.choice(near[int(ids[place])])
        return ids

    return fill


def by_masked_lm(model: Any, mask_id: int, spec: MaskReplace, kinds: NDArray[np.int8], run: Run) -> Fill:
    """One of the words that a masked-LM head finds likeliest, each with the same chance, but never the word itself."""
    model.train(False)
    rounds = math.ceil(spec.p / _MASKED)
    allowed = {kind: torch.from_numpy(kinds == kind).to(run.device.torch) for kind in _MAKES}

    def fill(split: Encoded, chosen: Places, draw: np.random.Generator) -> Ids:
        turn = draw.integers(rounds, size=len(chosen))
        ids = split.ids.copy()
        for number in range(rounds):
            _fill_masked(ids, split, chosen & (turn == number), draw)
        return ids

    @torch.inference_mode()
    def _fill_masked(ids: Ids, split: Encoded, places: Places, draw: np.random.Generator) -> None:
        masked = replace(split, ids=np.where(places, mask_id, ids).astype(np.int32))
        collate = Collator(masked, model.config.pad_token_id or 0, run.device.torch)
        for rows in forward_batches(split.lengths, tokens=_TOKENS):
            run.poll()
            here = np.concatenate([np.arange(split.starts[row], split.starts[row + 1]) for row in rows])
            here = here[places[here]]
            if not len(here):
                continue
            batch = collate(rows)
            with run.device.autocast():
                logits = model(**batch.inputs).logits[batch.inputs["input_ids"] == mask_id].float()
            # A text may hold a mask of its own: the places that were masked here are those of whole words alone.
            ids[here] = _drawn(logits[_own(masked, rows, places, mask_id)], ids[here], draw)

    def _drawn(logits: Tensor, before: Ids, draw: np.random.Generator) -> Ids:
        kind = kinds[before]
        for one, mask in allowed.items():
            logits[torch.from_numpy(kind == one).to(logits.device)] += torch.where(mask, 0.0, -math.inf)
        logits[torch.arange(len(before)), torch.from_numpy(before.astype(np.int64))] = -math.inf
        # Where a make has fewer words than candidates, the rest of the list is no word and must not be drawn.
        scores, best = logits.topk(min(spec.candidates, logits.shape[1]), dim=1)
        most = np.maximum(torch.isfinite(scores).sum(dim=1).cpu().numpy(), 1)
        found: Ids = best.cpu().numpy()[np.arange(len(before)), draw.integers(most)].astype(np.int32)
        return np.where(torch.isfinite(scores[:, 0]).cpu().numpy(), found, before)

    return fill


def _own(masked: Encoded, rows: NDArray[np.int64], places: Places, mask_id: int) -> Tensor:
    """Of the mask tokens of a batch, in order, which were masked here."""
    here = np.concatenate([np.arange(masked.starts[row], masked.starts[row + 1]) for row in rows])
    return torch.from_numpy(places[here][masked.ids[here] == mask_id])
