"""A tiny BERT and a tiny data set for tests: random weights, real English text, no network, well under a second each.

The text is the standard library's own docstrings, read from its source files. Two areas that share few words are
learned in two or three epochs of 200 rows at batch size 16 and a learning rate of 3e-3 (teacher and student alike);
BERT's usual 1e-4 moves so small a model hardly at all.
"""

from __future__ import annotations

import ast
import functools
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 2_000
AREAS = {
    "gui": ("tkinter", "turtle.py"),
    "testing": ("unittest", "doctest.py"),
    "networking": ("http", "email", "urllib", "smtplib.py", "ftplib.py", "imaplib.py", "socketserver.py"),
    "numbers": (
        "_pydecimal.py",
        "statistics.py",
        "fractions.py",
        "random.py",
        "numbers.py",
        "datetime.py",
        "calendar.py",
    ),
}
_WORD = re.compile(r"[a-z]+|[0-9]|[^\w\s]")


@functools.cache
def docstrings(area: str) -> tuple[str, ...]:
    """Every docstring of four words and more in the area's source files, each once, in the order of the files."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for name in AREAS[area]:
        root = library / name
        for file in [root] if root.suffix else sorted(root.rglob("*.py")):
            if file.exists() and not {"test", "tests", "idle_test"} & set(file.parts[len(library.parts) :]):
                found.update(dict.fromkeys(_docstrings_in(file)))
    return tuple(found)


def _docstrings_in(file: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(file.read_bytes())) if isinstance(n, kinds)]
    texts = [" ".join((ast.get_docstring(n) or "").split())[:300] for n in nodes]
    return [text for text in texts if len(text.split()) >= 4]


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """A WordPiece vocabulary: special tokens, single characters, and the most frequent words of :func:`docstrings`."""
    words = Counter(word for area in AREAS for text in docstrings(area) for word in _WORD.findall(text.lower()))
    characters = sorted({c for word in words for c in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *("##" + c for c in characters)]
    ranked = sorted((w for w in words if len(w) > 1), key=lambda w: (-words[w], w))
    return tuple((pieces + ranked)[:VOCABULARY])


def write_tiny_bert(
    folder: Path,
    *,
    layers: int = 4,
    hidden: int = 32,
    heads: int = 2,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> Path:
    """Write a Hugging Face folder (config, safetensors, tokenizer); with ``labels`` it has a classification head."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary())}, do_lower_case=True)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    head: dict[str, Any] = {}
    if labels is not None:
        head = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
        **head,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config) if labels is None else BertForSequenceClassification(config)
    _let_it_average(model.base_model)
    model.save_pretrained(folder)
    return folder


def _let_it_average(encoder: Any) -> None:
    """Start where pretraining leads to: every token sees the mean of all. From a random start the few steps of a
    test teach a model nothing."""
    import torch

    eye = torch.eye(encoder.config.hidden_size)
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight.mul_(10)
        for layer in encoder.encoder.layer:
            layer.attention.self.value.weight.add_(eye)
            layer.attention.output.dense.weight.add_(eye)
        encoder.pooler.dense.weight.add_(eye)


def write_tiny_lm(
    folder: Path, *, tokens: Sequence[str] | None = None, common: str = "the", head: bool = True, layers: int = 4
) -> Path:
    """Write a masked-LM folder that is better than guessing without any training: it answers each place with the token
    that stands there, which is right where a hidden token was left as it is, and a mask with a common token.

    Args:
        tokens: the vocabulary; default: :func:`vocabulary`.
        common: the token that a mask is answered with.
        head: without, the same encoder alone.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    pieces = vocabulary() if tokens is None else tokens
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(20)
            model.cls.predictions.transform.dense.weight.add_(torch.eye(32))
            table = model.get_input_embeddings().weight
            table[pieces.index("[MASK]")] = table[pieces.index(common)]
            model.cls.predictions.bias.normal_(std=0.1)
            model.cls.predictions.bias[pieces.index("[MASK]")] = -10
    (model if head else model.bert).save_pretrained(folder)
    return folder


def write_tiny_dataset(
    folder: Path, *, rows: int = 200, labels: Sequence[str] = ("gui", "networking"), seed: int = 0
) -> Path:
    """Write ``{train,validation,test}.parquet`` with the columns ``text`` and ``label`` (the area's name).

    ``rows`` is the size of train; validation and test have a quarter of it each. ``labels`` are keys of :data:`AREAS`.
    """
    import pyarrow
    import pyarrow.parquet

    draw = random.Random(seed)
    pools = {label: draw.sample(docstrings(label), len(docstrings(label))) for label in labels}
    folder.mkdir(parents=True, exist_ok=True)
    held_out = max(rows // 4, len(labels))
    for split, size in (("train", rows), ("validation", held_out), ("test", held_out)):
        chosen = [(pools[label].pop(), label) for label in (labels[i % len(labels)] for i in range(size))]
        draw.shuffle(chosen)
        columns = {"text": [text for text, _ in chosen], "label": [label for _, label in chosen]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{split}.parquet")
    return folder
