"""Which column of a table holds what: as the user says, else by the names that data sets usually give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limbeck.config import Columns
from limbeck.data.corpus import IMAGES, ONE_LABEL, PLAIN
from limbeck.data.image_cells import looks_like_image
from limbeck.data.table import Table, listed
from limbeck.errors import InvalidDataset, Problem

_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
)
#: The first of each is what Limbeck itself calls the column: it wins over the others, which are guesses.
_TEXTS = ("text", "sentence", "content", "review", "comment", "document", "body", "utterance", "question", "title")
_LABELS = (
    "label", "labels", "category", "class", "intent", "sentiment", "target", "topic", "coarse_label", "fine_label"
)  # fmt: skip
_SCORES = ("label", "score", "similarity_score", "similarity", "relatedness_score")
_TOKENS = ("tokens", "words")
_TAGS = ("tags", "ner_tags", "labels", "label", "ner")

_IMAGES = ("image", "img", "picture", "photo")

_TEXT_FIELDS = ("text", "text_pair", "label")
#: The fields of ``Columns`` that hold an example's text, second text and label, by task; the other tasks' are the same.
FIELDS = {
    "token_classification": ("tokens", None, "tags"),
    "question_answering": ("question", "context", "answers"),
    IMAGES: ("image", None, "label"),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns that are used."""

    text: str  #: of token classification the tokens, of question answering the question, of images these
    text_pair: str | None  #: of question answering the context
    label: str  #: tags, or answers; empty where there is none, as for texts alone
    task: str | None = None  #: None: the labels tell which of the tasks on texts it is

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text, self.text_pair, self.label) if name)

    @property
    def by_field(self) -> dict[str, str | None]:
        """The columns by the names that ``Columns`` has for them."""
        fields = fields_of(self.task)
        names = zip(fields, (self.text, self.text_pair, self.label), strict=True)
        return {field: name or None for field, name in names if field is not None}


def fields_of(task: str | None) -> tuple[str, str | None, str]:
    """The fields of ``Columns`` for text, second text and label."""
    return FIELDS.get(task or ONE_LABEL, _TEXT_FIELDS)


def choose_columns(
    table: Table, wanted: Columns, where: str, *, at: str = "/dataset/columns", task: str | None = None
) -> Chosen:
    """The columns that ``wanted`` names; the others by their usual names, in upper or lower case.

    Args:
        where: the split, for messages.
        at: the JSON pointer of ``wanted`` in what the user sent.
        task: the ``type`` of the task where it is known; else the columns tell it as far as they can.

    Raises:
        InvalidDataset: a named column is not there, none can be guessed, or several can.
    """
    _require_there(dict(wanted), table, where, at)
    task = task or _task_of(table, wanted)
    fields = fields_of(task)
    for field in type(wanted).model_fields:
        if getattr(wanted, field) is not None and field not in fields:
            own = ", ".join(one for one in fields if one is not None)
            raise _fault(at, field, f"found {getattr(wanted, field)!r}; the columns of {task or 'texts'} are {own}")
    chosen = _of_task(table, wanted, where, at, task)
    if len(set(chosen.all)) < len(chosen.all):
        *others, last = (field for field in fields if field is not None)
        detail = f"{', '.join(others)} and {last} have to be different columns"
        raise InvalidDataset(detail, [Problem(at, detail)])
    return chosen


def _of_task(table: Table, wanted: Columns, where: str, at: str, task: str | None) -> Chosen:
    """The columns that such a task has."""
    match task:
        case "token_classification":
            tokens = wanted.tokens or _guess("tokens", _TOKENS, table, where, at, taken=())
            tags = wanted.tags or _guess("tags", _TAGS, table, where, at, taken=(tokens,))
            return Chosen(tokens, None, tags, task)
        case "question_answering":
            question, context, answers = (
                getattr(wanted, field) or _guess(field, (field,), table, where, at, taken=())
                for field in ("question", "context", "answers")
            )
            return Chosen(question, context, answers, task)
        case "image_classification":
            image = wanted.image or _guess("image", _IMAGES, table, where, at, taken=())
            label = wanted.label or _guess("label", _LABELS, table, where, at, taken=(image,))
            return Chosen(image, None, label, task)
        case "embeddings":
            return _texts_to_embed(table, wanted, where, at)
        case "masked_lm":
            if wanted.label is not None or wanted.text_pair is not None:
                field = "label" if wanted.label is not None else "text_pair"
                raise _fault(at, field, f"found {getattr(wanted, field)!r}; masked_lm learns from the text alone")
            text, _ = choose_texts(table, wanted.text, None, where, at=at)
            return Chosen(text, None, "", task)
        case _:
            return _texts(table, wanted, where, at, task)


def _task_of(table: Table, wanted: Columns) -> str | None:
    """The task that the columns' names are of; None for a text with a label, of whatever kind that is."""
    if table.task in ("embeddings", IMAGES, PLAIN):
        return table.task
    # Only where nothing stands beside the text: else a label column with an unusual name would go unseen.
    alone = next(iter(table.columns)) if len(table.columns) == 1 else ""
    if alone and wanted.label is None and (wanted.text or alone.lower() in _TEXTS):
        return PLAIN
    for task, fields in FIELDS.items():
        if any(getattr(wanted, field) for field in fields if field is not None and field not in _TEXT_FIELDS):
            return task
    lowered = {name.lower(): name for name in table.columns}
    texts = wanted.text or wanted.text_pair or any(name in lowered for name in ("text", "sentence"))
    if not texts and any(name in lowered and _holds_images(table, lowered[name]) for name in _IMAGES):
        return IMAGES
    if any(getattr(wanted, field) for field in _TEXT_FIELDS):
        return None
    if lowered.keys() >= {"question", "context", "answers"}:
        return "question_answering"
    listed_tokens = [name for usual in _TOKENS if (name := lowered.get(usual)) and _holds_lists(table, name)]
    if listed_tokens and "text" not in lowered and lowered.keys() & set(_TAGS):
        return "token_classification"
    return None


def _holds_lists(table: Table, name: str) -> bool:
    first = next((cell for cell in table.columns[name] if cell not in (None, "")), None)
    return isinstance(first, list) or (isinstance(first, str) and first.lstrip().startswith("["))


def _holds_images(table: Table, name: str) -> bool:
    first = next((cell for cell in table.columns[name] if cell not in (None, "")), None)
    return looks_like_image(first)


def _texts(table: Table, wanted: Columns, where: str, at: str, task: str | None) -> Chosen:
    text, pair = wanted.text, wanted.text_pair
    if text is None:
        text, pair = _guess_texts(table, pair, where, at)
    label = wanted.label or _guess("label", _LABELS, table, where, at, taken=(text, pair))
    return Chosen(text, pair, label, task)


def _texts_to_embed(table: Table, wanted: Columns, where: str, at: str) -> Chosen:
    """Pairs with their scores, or texts; a column of labels beside single texts is not looked at."""
    text, pair = wanted.text, wanted.text_pair
    if text is None:
        text, pair = _guess_texts(table, pair, where, at)
    if pair is None:
        if wanted.label is not None:
            detail = f"found {wanted.label!r}; a score is of two texts: name text_pair as well, or leave label out"
            raise _fault(at, "label", detail)
        return Chosen(text, None, "", "embeddings")
    label = wanted.label or _guess("label", _SCORES, table, where, at, taken=(text, pair))
    return Chosen(text, pair, label, "embeddings")


def choose_texts(
    table: Table, text: str | None, text_pair: str | None, where: str, *, at: str
) -> tuple[str, str | None]:
    """The column of the texts, and of the second texts where they are pairs; no label is looked for.

    Raises:
        InvalidDataset: a named column is not there, none can be guessed, or several can.
    """
    _require_there({"text": text, "text_pair": text_pair}, table, where, at)
    return _guess_texts(table, text_pair, where, at) if text is None else (text, text_pair)


def _guess_texts(table: Table, pair: str | None, where: str, at: str) -> tuple[str, str | None]:
    """The one text, or the two of a pair. Where only the second is named, the first is the one it usually goes with."""
    lowered = {name.lower(): name for name in table.columns}
    pairs = [(lowered[one], lowered[two]) for one, two in _PAIRS if one in lowered and two in lowered]
    fitting = [both for both in pairs if pair in (None, both[1])]
    if len(fitting) > 1:
        several = " or ".join(f"{one!r} and {two!r}" for one, two in fitting)
        raise _fault(at, "text", f"the texts in {where} could be {several}; name text and text_pair")
    if fitting:
        return fitting[0]
    return _guess("text", _TEXTS, table, where, at, taken=(pair,)), pair


def _guess(field: str, usual: Sequence[str], table: Table, where: str, at: str, *, taken: Sequence[str | None]) -> str:
    lowered = {name.lower(): name for name in table.columns if name not in taken}
    found = [lowered[name] for name in usual if name in lowered]
    if not found:
        has = listed(table.columns)
        raise _fault(at, field, f"no {field} column in {where}: it has {has}; name one, or call it {usual[0]!r}")
    if len(found) > 1 and found[0].lower() != usual[0]:
        raise _fault(at, field, f"the {field} column in {where} could be {listed(found)}; name the one that is meant")
    return found[0]


def _require_there(named: Mapping[str, str | None], table: Table, where: str, at: str) -> None:
    has = listed(table.columns)
    missing = {
        field: f"found no column {name!r} in {where}; it has {has}"
        for field, name in named.items()
        if name is not None and name not in table.columns
    }
    if missing:
        lines = "; ".join(f"{field}: {detail}" for field, detail in missing.items())
        raise InvalidDataset(lines, [Problem(f"{at}/{field}", detail) for field, detail in missing.items()])


def _fault(at: str, field: str, detail: str) -> InvalidDataset:
    return InvalidDataset(f"{field}: {detail}", [Problem(f"{at}/{field}", detail)])
