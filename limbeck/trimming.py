"""A tokenizer without the tokens that a data set's texts never use, which reads those texts as before.

What may go depends on how a tokenizer finds its pieces:

- WordPiece takes the longest piece that fits. A piece that no text uses was never the longest, so that the rest is
  found as before. Single characters stay, for words that no text had.
- BPE joins pieces by its list of merges. Every piece on the way to one that stays has to stay, and so do the single
  characters (or bytes).
- Unigram chooses the likeliest way to cut a word. Taking away pieces that were never chosen leaves the choice as it
  was; single characters stay, and so does the least likely piece, which sets the price of an unknown character.

Texts are used whole, also where they are cut at ``max_length``: a word at the cut is read by what follows it, and how
much of a pair's texts is left hangs on how many tokens both have.

Only a word that was unknown as a whole can be found to have pieces once others are gone; so the result is checked on
every text of the data set before it is used (``limbeck/reading.py``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InvalidConfig, Problem

if TYPE_CHECKING:
    from limbeck.data import Split

Ids = NDArray[np.int64]
_CHUNK = 2048


def whole_ids(tokenizer: Any, split: Split, poll: Callable[[], None]) -> Ids:
    """The ids that a split's texts use, each once, those behind the cut among them."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    columns: list[Sequence[Any]] = [split.texts, split.pairs or []] if split.tokens is None else [split.tokens]
    found = [np.empty(0, dtype=np.int64)]
    for column in columns:
        for start in range(0, len(column), _CHUNK):
            poll()
            rows = [row if isinstance(row, str) else list(row) for row in column[start : start + _CHUNK]]
            coded = backend.encode_batch(rows, is_pretokenized=split.tokens is not None, add_special_tokens=False)
            found.append(np.unique(np.concatenate([np.asarray(one.ids, dtype=np.int64) for one in coded])))
    return np.unique(np.concatenate(found))


def kept_ids(tokenizer: Any, used: Ids) -> Ids:
    """The ids that a trimmed tokenizer needs, rising: those that are used, and what they take to be found.

    Args:
        tokenizer: a fast tokenizer of transformers.
        used: ids that the texts use, and those of special tokens.

    Raises:
        InvalidConfig: at ``/student/vocabulary``: the kind of tokenizer is not known.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = [int(number) for number in tokenizer.added_tokens_decoder]
    match model["type"]:
        case "WordPiece":
            prefix = model["continuing_subword_prefix"]
            single = [i for piece, i in model["vocab"].items() if len(piece.removeprefix(prefix)) == 1]
            needed = [*single, *_unknown(model)]
        case "BPE":
            needed = [*_on_the_way(model, used), *_unknown(model)]
        case "Unigram":
            pieces = [piece for piece, _ in model["vocab"]]
            scores = [score for _, score in model["vocab"]]
            single = [i for i, piece in enumerate(pieces) if len(piece) == 1]
            needed = [*single, *_unknown(model), int(np.argmin(scores))]
        case kind:
            raise _refusal(f"the tokenizer is of the kind {kind!r}; allowed: WordPiece, BPE, Unigram")
    if model.get("byte_fallback"):  # what has no piece is read byte by byte
        places = tokenizer.backend_tokenizer.token_to_id
        needed += [i for i in (places(f"<0x{byte:02X}>") for byte in range(256)) if i is not None]
    return np.unique(np.concatenate([np.asarray(used, dtype=np.int64), np.asarray([*needed, *added], dtype=np.int64)]))


def _unknown(model: Mapping[str, Any]) -> list[int]:
    if model["type"] == "Unigram":
        return [] if model["unk_id"] is None else [int(model["unk_id"])]
    found = model["vocab"].get(model.get("unk_token"))
    return [] if found is None else [int(found)]


def _on_the_way(model: Mapping[str, Any], used: Ids) -> list[int]:
    """Of a BPE model the single characters, and all pieces that joining makes before it makes those that are used."""
    vocab: dict[str, int] = model["vocab"]
    names = {number: piece for piece, number in vocab.items()}
    ranks = {tuple(merge): rank for rank, merge in enumerate(_merges(model))}
    marks = tuple(mark for mark in (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")) if mark)
    if marks:
        raise _refusal(f"the BPE tokenizer marks pieces inside or at the end of words ({', '.join(marks)})")
    needed = {number for piece, number in vocab.items() if len(piece) == 1}
    for number in used.tolist():
        parts = list(names.get(number, ""))
        while pairs := [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]:
            _, place = min(pairs)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            needed.add(vocab[parts[place]])
    return sorted(needed)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files have them as text."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(first, second) for first, second in pairs]


def trimmed(tokenizer: Any, kept: Ids) -> Any:
    """The same tokenizer with these tokens alone; a token's new id is its place in ``kept``."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    document = json.loads(tokenizer.backend_tokenizer.to_str())
    places = {int(number): place for place, number in enumerate(kept)}
    _renumber(document, places)
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    small: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **names,
    )
    return small


def name_for_all(folder: Path) -> None:
    """Name a saved trimmed tokenizer's class as transformers 4 knew it; 5 reads both names as the same."""
    path = folder / "tokenizer_config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["tokenizer_class"] == "TokenizersBackend":
        document["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _renumber(document: dict[str, Any], places: Mapping[int, int]) -> None:
    """Write a tokenizer.json's new ids, and leave out what is gone."""
    model = document["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in places]
        model["unk_id"] = None if model["unk_id"] is None else places[model["unk_id"]]
    else:
        model["vocab"] = {piece: places[number] for piece, number in model["vocab"].items() if number in places}
    if model["type"] == "BPE":
        stay = model["vocab"]
        model["merges"] = [
            merge for merge in _merges(model) if all(part in stay for part in (*merge, merge[0] + merge[1]))
        ]
    document["added_tokens"] = [
        {**token, "id": places[token["id"]]} for token in document["added_tokens"] if token["id"] in places
    ]
    for part in _processors(document.get("post_processor")):
        for name in ("sep", "cls"):
            if name in part:
                part[name] = [part[name][0], places[part[name][1]]]
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [places[number] for number in token["ids"]]
    if document.get("padding"):
        document["padding"]["pad_id"] = places[document["padding"]["pad_id"]]


def _processors(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [inner for one in part["processors"] for inner in _processors(one)]
    return [part]


def renumber_config(config: Any, kept: Ids) -> None:
    """Write the new ids of special tokens into a model's configuration; a token that is gone has none."""
    places = {int(number): place for place, number in enumerate(kept)}
    config.vocab_size = len(kept)
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, places.get(value))
        elif name.endswith("_token_id") and isinstance(value, list):
            setattr(config, name, [places[number] for number in value if number in places])


def _refusal(detail: str) -> InvalidConfig:
    whole = f"found 'trimmed'; {detail}"
    return InvalidConfig(f"/student/vocabulary: {whole}", [Problem("/student/vocabulary", whole)])
