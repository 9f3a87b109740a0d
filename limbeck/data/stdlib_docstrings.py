"""``builtin:stdlib-docstrings``: real English text that is on every machine with Python.

The docstrings of the running interpreter's standard library, each labelled with the area that its module belongs to.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from limbeck.data.corpus import Corpus, Split, content_hash
from limbeck.data.likeness import families
from limbeck.errors import InvalidDataset

SOURCE = "builtin:stdlib-docstrings"

#: Which top-level modules and packages make an area. A module that stands nowhere here is left out.
AREAS: dict[str, str] = {
    "concurrency": """
        _threading_local asyncio concurrent contextvars multiprocessing queue sched selectors subprocess threading
    """,
    "data structures": """
        _collections_abc _weakrefset abc annotationlib array bisect collections copy copyreg dataclasses enum functools
        graphlib heapq itertools operator pprint reprlib types typing weakref
    """,
    "development": """
        _ast_unparse _pyrepl ast bdb cProfile cgitb code codeop cmd dis inspect pdb profile pstats pyclbr pydoc
        rlcompleter symtable tabnanny timeit token tokenize trace traceback tracemalloc
    """,
    "email": "email imaplib mailbox mailcap mimetypes nntplib poplib quopri smtpd smtplib",
    "file formats": """
        _compression aifc base64 binhex bz2 chunk compression configparser csv gzip json lzma netrc pickle pickletools
        plistlib shelve sndhdr sunau tarfile tomllib uu wave xdrlib zipapp zipfile
    """,
    "files and system": """
        _aix_support _osx_support _pyio filecmp fileinput fnmatch genericpath getpass glob io linecache ntpath os
        pathlib pipes platform posixpath pty shutil stat tempfile tty
    """,
    "gui": "curses tkinter turtle",
    "imports and packaging": """
        compileall distutils importlib imp modulefinder pkgutil py_compile runpy site sysconfig venv zipimport
    """,
    "networking": """
        asynchat asyncore cgi ftplib http ipaddress socket socketserver ssl telnetlib urllib uuid webbrowser wsgiref
        xmlrpc
    """,
    "numbers and dates": """
        _pydatetime _pydecimal _strptime calendar colorsys datetime decimal fractions numbers random secrets statistics
        zoneinfo
    """,
    "testing and logging": "doctest logging unittest warnings",
    "text": """
        _markupbase argparse codecs difflib encodings getopt gettext html locale optparse re shlex sre_compile
        sre_parse string stringprep textwrap xml
    """,
}

_AREA_OF = {module: area for area, modules in AREAS.items() for module in modules.split()}
#: Tests, and what an installation adds to the library.
_LEFT_OUT = frozenset({"__pycache__", "idle_test", "idlelib", "site-packages", "test", "tests", "turtledemo"})
_LONGEST = 600  # characters: more than any of the models here reads
_WORDS = re.compile(r"[a-z0-9]+")
_ALIKE = 7  # of ten words: from there on two docstrings are of one family
#: A large family (the sixty codecs that differ in a name) trains: a test split of them would measure one sentence.
_LARGE_FAMILY = 20


@functools.cache
def load_docstrings() -> Corpus:
    """Read, label and split the docstrings; the same on every call and in every process of one interpreter.

    Of docstrings with the same words the first is kept. Those that share 7 of 10 words are a family, and fall together
    into the split that the hash of their words names: what is tested on has no near copy in train. Of 100 docstrings
    about 76 train, 12 validate and 12 test.

    Raises:
        InvalidDataset: this Python came without the sources of its library.
    """
    labels = tuple(sorted(AREAS))
    found = _distinct()
    if len(found) < 1_000:
        raise InvalidDataset(
            f"{SOURCE}: {sysconfig.get_path('stdlib')} holds {len(found)} docstrings: this Python came without the "
            "sources of its standard library; use one that has them"
        )
    splits: dict[str, Split] = {name: Split([], None, []) for name in ("train", "validation", "test")}
    members = defaultdict(list)
    for words, family in zip(found, families(list(found), _ALIKE), strict=True):
        members[family].append(words)
    place = {words: _split_of(family) for family in members.values() for words in family}
    for words, (area, text) in found.items():
        split = splits[place[words]]
        split.texts.append(text)
        split.labels.append(labels.index(area))
    parts = splits["train"], splits["validation"], splits["test"]
    return Corpus(*parts, labels, SOURCE, content_hash(labels, *parts))


def _split_of(family: list[str]) -> str:
    if len(family) > _LARGE_FAMILY:
        return "train"
    place = hashlib.sha256(min(family).encode()).digest()[0]
    return "train" if place < 194 else "validation" if place < 225 else "test"


def _distinct() -> dict[str, tuple[str, str]]:
    """Area and text by the text's words, of the docstrings of four words and more."""
    found: dict[str, tuple[str, str]] = {}
    for area, text in _documented():
        words = " ".join(_WORDS.findall(text.lower()))
        if words.count(" ") >= 3:
            found.setdefault(words, (area, text))
    return found


def _documented() -> Iterator[tuple[str, str]]:
    """Area and text of each docstring, in the order of the files."""
    for area, file in _files():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old escapes in strings, where they are made errors
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template or a file for another version
        for text in _docstrings(tree.body):
            yield area, " ".join(text.split())[:_LONGEST]


def _files() -> Iterator[tuple[str, Path]]:
    library = Path(sysconfig.get_path("stdlib"))
    for module, area in sorted(_AREA_OF.items()):
        if (file := library / f"{module}.py").is_file():
            yield area, file
        for file in sorted((library / module).rglob("*.py")):
            if _LEFT_OUT.isdisjoint(file.relative_to(library).parts):
                yield area, file


def _docstrings(body: list[ast.stmt]) -> Iterator[str]:
    """The docstring that a body begins with, and those within it. Expressions hold none: they are not walked."""
    match body:
        case [ast.Expr(ast.Constant(str() as text)), *_]:
            yield text
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(statement.body)
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            yield from _nested(statement)


def _nested(statement: ast.stmt) -> Iterator[str]:
    for field in ("body", "orelse", "finalbody"):
        inner: list[ast.stmt] = getattr(statement, field, [])
        # A branch that begins with a string is no docstring: only what is defined in it counts.
        yield from _docstrings([ast.Pass(), *inner])
    for handler in getattr(statement, "handlers", []):
        yield from _docstrings([ast.Pass(), *handler.body])
