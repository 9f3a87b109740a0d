"""The tokenizers of a job: the teacher's, and that of a student which is a model of its own and reads other tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import InvalidConfig, InvalidModel, Problem
from limbeck.model_folder import sentencepiece_alone
from limbeck.students import read_config
from limbeck.tasks.base import Task

if TYPE_CHECKING:
    from limbeck.config import DistillConfig
    from limbeck.data import Corpus
    from limbeck.sources import LocalModel
    from limbeck.teachers import TeacherFolder

#: Tasks with one row of logits for each example, whatever tokens it is cut into.
_BY_TEXT = ("sequence_classification", "multi_label", "regression")
#: Texts on which two tokenizers of the same tokens are compared.
_COMPARED = 200


def other_tokenizer(config: DistillConfig, tokenizer: Any, source: LocalModel, corpus: Corpus, task: Task) -> Any:
    """The tokenizer of the student's own model where it does not read texts as the teacher's does, else None.

    Raises:
        InvalidConfig: this job needs student and teacher to read the same tokens.
    """
    own = load_tokenizer(source.path, read_config(source.path), task, "student")
    if _same_tokens(own, tokenizer, corpus, task):
        return None
    reason = _needs_same_tokens(config, task)
    if reason is not None:
        detail = (
            f"found a model whose tokenizer ({len(own):,} tokens) is not the teacher's ({len(tokenizer):,} tokens): it "
            f"reads texts as other tokens or token types, and {reason}; allowed: a model with the teacher's own "
            "tokenizer"
        )
        raise InvalidConfig(f"/student/source: {detail}", [Problem("/student/source", detail)])
    return own


def require_answers_alone(config: DistillConfig) -> None:
    """For a student that reads images in another size or range than its teacher.

    Raises:
        InvalidConfig: the method may take more from the teacher than its answers.
    """
    if not config.method.any_tokenizer:
        detail = (
            f"found a model that prepares images otherwise than the teacher does, and the method "
            f"{config.method.type!r} may take more from the teacher than its answers, which kd, noise and none do not"
        )
        raise InvalidConfig(f"/student/source: {detail}", [Problem("/student/source", detail)])


def further_tokenizer(config: DistillConfig, tokenizer: Any, teacher: TeacherFolder, corpus: Corpus, task: Task) -> Any:
    """The tokenizer of a further teacher where it does not read texts as the first one does, else None.

    Raises:
        InvalidConfig: this job needs all teachers to read the same tokens.
        InvalidModel: as :func:`load_tokenizer`, with the teacher's place in the configuration.
    """
    at = f"{teacher.pointer}/source"
    try:
        own = load_tokenizer(teacher.path, read_config(teacher.path), task)
    except InvalidModel as error:  # of several teachers it has to say which
        raise InvalidModel(f"{at}: {error.message}", [Problem(at, error.message)]) from error
    if _same_tokens(own, tokenizer, corpus, task):
        return None
    reason = _needs_whole_texts(config, task)
    if reason is not None:
        detail = (
            f"found a model whose tokenizer ({len(own):,} tokens) is not the first teacher's ({len(tokenizer):,} "
            f"tokens), and {reason}; allowed: a model with the first teacher's own tokenizer"
        )
        raise InvalidConfig(f"{at}: {detail}", [Problem(at, detail)])
    return own


def _same_tokens(one: Any, other: Any, corpus: Corpus, task: Task) -> bool:
    """Whether two tokenizers read the data set's texts as the same ids."""
    texts = list(corpus.train.texts[:_COMPARED])
    same = one.get_vocab() == other.get_vocab() and one(texts)["input_ids"] == other(texts)["input_ids"]
    # Of a pair, models tell the two texts apart by token types or not at all.
    return same and (corpus.train.pairs is None or not task.joined or one.model_input_names == other.model_input_names)


def _needs_same_tokens(config: DistillConfig, task: Task) -> str | None:
    """Why student and teacher have to read the same tokens; None where they need not."""
    if not config.method.any_tokenizer:
        return (
            f"the method {config.method.type!r} may take more from the teacher than its answers to whole texts, which "
            "kd, noise and none do not"
        )
    return _needs_whole_texts(config, task)


def _needs_whole_texts(config: DistillConfig, task: Task) -> str | None:
    """Why all models of a job have to read the same tokens, whatever the method takes from the teacher."""
    if task.type not in _BY_TEXT:
        return f"the task {task.type} does not answer each text as a whole, as {', '.join(_BY_TEXT)} do"
    if config.training.augmentation:
        return "training.augmentation makes its texts from the teacher's tokens"
    return None


def load_tokenizer(folder: Path, config: Any, task: Task | None = None, who: str = "teacher") -> Any:
    """The tokenizer of the teacher, which is the student's as well, or of the student that has its own.

    Raises:
        InvalidModel: there is none, it has no Rust form (which the exported student needs), or it is another model's.
    """
    from transformers import AutoTokenizer

    options = task.tokenizer_options(config.model_type) if task else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except (ImportError, OSError, ValueError, KeyError) as error:
        unread = f"The {who} has no tokenizer that transformers can read: {error}"
        raise _unfit(who, sentencepiece_alone(folder) or unread) from error
    if not tokenizer.is_fast:
        raise _unfit(who, f"The {who}'s tokenizer has no tokenizer.json form, which the exported student needs.")
    if options.get("add_prefix_space"):
        _prefix_space(tokenizer)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # Of a folder without a vocabulary transformers makes one, to which every word is the unknown token.
        files = " or ".join(sorted(set(tokenizer.vocab_files_names.values())))
        raise _unfit(who, f"The {who}'s tokenizer knows no word: its folder has to hold its vocabulary, as {files}.")
    if len(tokenizer) > config.vocab_size:
        raise _unfit(
            who,
            f"The tokenizer knows {len(tokenizer)} tokens, the {who} only {config.vocab_size}: "
            "they do not belong together.",
        )
    if tokenizer.pad_token_id is None or config.pad_token_id not in (None, tokenizer.pad_token_id):
        raise _unfit(
            who,
            f"The tokenizer pads with the token {tokenizer.pad_token_id}, the {who} with {config.pad_token_id}: "
            "they do not belong together.",
        )
    # What a tokenizer tells of by itself is its class's affair, and of some (ALBERT's) not what the model reads.
    names = ["input_ids", "token_type_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 0) < 2:
        names.remove("token_type_ids")
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    # As batches are padded here: with padding in front whoever loads the folder would move the positions of all tokens.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    return tokenizer


def _prefix_space(tokenizer: Any) -> None:
    """Give every word of a list the blank that it has in a text.

    The tokenizers of some models, as ModernBERT's, are of transformers' general class, which takes the option and
    leaves what cuts the text as the file has it.
    """
    from tokenizers import Tokenizer

    document = json.loads(tokenizer.backend_tokenizer.to_str())
    first = document.get("pre_tokenizer") or {}
    if first.get("type") == "Sequence":
        first = first["pretokenizers"][0]  # behind another one it would begin each of that one's pieces with a blank
    if first.get("type") == "ByteLevel" and not first["add_prefix_space"]:
        first["add_prefix_space"] = True
        tokenizer.backend_tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(document)).pre_tokenizer


def _unfit(who: str, message: str) -> InvalidModel:
    return InvalidModel(message, [Problem(f"/{who}/source", message)])
