r"""Where the words of a text are, as lists of tokens have them: what a student that tags tokens learned from.

Such lists keep ``O'Brien``, ``7:30``, ``@jack`` and ``https://…`` in one piece, which a tokenizer's own splitter does
not, and put the marks around a word, and ``'s``, on their own; Chinese ones list characters.

A word is what stands between blanks, without the marks at its ends: brackets and quotes on both sides, the marks of a
sentence behind it, equal ones together (``...``), each a word of its own, as are ``—`` and an ``'s``. Inner marks stay,
so do the points of ``U.S.`` and words of marks alone (``:)``). What holds ideographs or kana is cut to its characters.

How well these words are the tokens of the file (F1 of their places; BERT's own splitter in brackets), where its tokens
are joined by blanks, and where they are written as people do (no blank before a comma, none at all in Chinese):

===============  ===============  ===============
\                joined           as written
===============  ===============  ===============
WNUT-17, train   99.6 % (76.1 %)  99.0 % (76.1 %)
WNUT-17, test    99.8 % (84.9 %)  96.5 % (84.9 %)
SNIPS, test      99.5 % (98.6 %)
Weibo NER, test  100 % (100 %)    100 % (94.5 %)
===============  ===============  ===============

WNUT-17's test split has ``don ' t`` and each point of ``...`` on their own, its training split has not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from limbeck.ideographs import SCRIPT

#: Beginning and end, characters of a text.
Span = tuple[int, int]

_BETWEEN_BLANKS = re.compile(r"—|[^\s—]+")
#: Ideographs, kana, and the marks that are written with them.
_CHARACTER = re.compile(f"[{SCRIPT}\u3001-\u303f\u30fb\uff01-\uff65]")
_LETTER = re.compile(r"\w")
_OPENING = frozenset("([{<«\"'`“‘„‚¿¡")
_CLOSING = frozenset(")]}>»\"'”’.,;:!?…")
_POSSESSIVE = frozenset(("'s", "'S", "’s", "’S"))
#: Marks at an end that are part of the word: a form of a verb on its own, initials, an entity of HTML.
_WHOLE = re.compile(r"['’](?:s|m|d|t|re|ve|ll)|(?:\w\.){1,8}|&\w{1,8};", re.IGNORECASE)


def words(text: str) -> list[Span]:
    """In the order of the text; between them are blanks, or nothing."""
    found: list[Span] = []
    for between in _BETWEEN_BLANKS.finditer(text):
        start, end = between.span()
        if _CHARACTER.search(text, start, end):
            found += [(place, place + 1) for place in range(start, end)]
        elif _LETTER.search(text, start, end):
            found += _without_marks(text, start, end)
        else:
            found.append((start, end))
    return found


def as_text(tokens: Sequence[str]) -> tuple[str, list[Span]]:
    """Tokens with a blank between them, and where each stands."""
    ends = accumulate((len(token) + 1 for token in tokens), initial=0)
    return " ".join(tokens), [(start, start + len(token)) for start, token in zip(ends, tokens, strict=False)]


def _without_marks(text: str, start: int, end: int) -> list[Span]:
    """A word with a letter or digit, and the marks at its ends."""
    before: list[Span] = []
    after: list[Span] = []
    while text[start] in _OPENING and not _WHOLE.fullmatch(text, start, end):
        before.append((start, start + 1))
        start += 1
    while start < end and not _WHOLE.fullmatch(text, start, end):
        begin = end - 1
        if text[end - 2 : end] in _POSSESSIVE and end - 2 > start:
            begin = end - 2
        elif text[begin] not in _CLOSING:
            break
        else:
            while begin > start and text[begin - 1] == text[end - 1]:
                begin -= 1
        after.append((begin, end))
        end = begin
    # Nothing is left of marks in front of an 's.
    return [*before, *([(start, end)] if start < end else []), *reversed(after)]
