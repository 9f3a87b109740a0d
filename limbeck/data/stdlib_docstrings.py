"""``builtin:stdlib-docstrings``: real English text that is on every machine with Python.

The docstrings of the running interpreter's standard library, each labelled with the area that its module belongs to.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from limbeck.data.corpus import Corpus, Split, content_hash

SOURCE = "builtin:stdlib-docstrings"

#: Which top-level modules and packages make an area. A module that stands nowhere here is left out.
AREAS: dict[str, str] = {
    "concurrency": """
        _threading_local asyncio concurrent contextvars multiprocessing queue sched selectors subprocess threading
    """,
    "data structures": """
        _collections_abc _weakrefset abc array bisect collections copy copyreg dataclasses enum functools graphlib heapq
        itertools operator pprint reprlib types typing weakref
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
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_LONGEST = 600  # characters: more than any of the models here reads
_WORDS = re.compile(r"[a-z0-9]+")


@functools.cache
def load_docstrings() -> Corpus:
    """Read, label and split the docstrings; the same on every call and in every process of one interpreter.

    A docstring belongs to a split by the hash of its words, so that copies of it, apart in punctuation or case only,
    fall together and the first alone is kept. Of 100 docstrings about 76 train, 12 validate and 12 test.
    """
    labels = tuple(sorted(AREAS))
    seen: set[str] = set()
    splits: dict[str, Split] = {name: Split([], None, []) for name in ("train", "validation", "test")}
    for area, text in _documented():
        words = " ".join(_WORDS.findall(text.lower()))
        if words in seen or words.count(" ") < 3:
            continue
        seen.add(words)
        split = splits[_split_of(words)]
        split.texts.append(text)
        split.labels.append(labels.index(area))
    parts = splits["train"], splits["validation"], splits["test"]
    return Corpus(*parts, labels, SOURCE, content_hash(labels, *parts))


def _split_of(words: str) -> str:
    place = hashlib.sha256(words.encode()).digest()[0]
    return "train" if place < 194 else "validation" if place < 225 else "test"


def _documented() -> Iterator[tuple[str, str]]:
    """Area and text of each docstring, in the order of the files."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        inside = file.relative_to(library)
        area = _AREA_OF.get(inside.parts[0].removesuffix(".py"))
        if area is None or not _LEFT_OUT.isdisjoint(inside.parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template or a file for another version
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
                yield area, " ".join(text.split())[:_LONGEST]
