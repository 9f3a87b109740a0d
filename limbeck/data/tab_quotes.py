"""Whether quotation marks in a tab-separated file are its texts' own, or stand around fields as in CSV.

Both are common. Published data sets (GLUE's; IANA's text/tab-separated-values) have no quoting: a line is a row, and a
text may begin with a mark. pandas and spreadsheets quote a field that has a tab, a line end or a mark in it, and double
the marks inside. Read as the other kind, texts of the first swallow rows, and those of the second fall apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARK = '"'
_CLOSED = re.compile(r'"(?:[^"]|"")*"')


class TabQuotes:
    """What a file's lines say of it.

    Attributes:
        opened: fields, the header's left out, that begin with a mark; without any, both kinds are read alike.
        rows: lines behind the header that are not empty.
        ragged: the first line that has not as many fields as the header, in words.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.opened = self.rows = 0
        self.ragged: str | None = None
        #: Each field that begins with a mark ends with one, and those between come in twos.
        self._closed = True
        #: Whether just those fields are quoted which such a writer would quote.
        self._as_pandas = self._as_excel = self._as_spaced = True
        #: Of a single column: whether CSV's quoted fields, line ends in them, explain every mark; whether one is open.
        self._explained, self._open = True, False
        numbered = enumerate((line.rstrip("\r\n") for line in lines), start=1)
        header = next(numbered, (1, ""))[1].split("\t")
        self._quoted_header = any(name.startswith(_MARK) for name in header)
        self._by_column = [0] * len(header)
        for number, line in numbered:
            if line:
                self._take(line, number)

    def _take(self, line: str, number: int) -> None:
        self.rows += 1
        if len(self._by_column) == 1:
            self._take_single(line)
        if self.ragged is None and (fields := line.count("\t") + 1) != len(self._by_column):
            self.ragged = f"row {self.rows} (line {number}) has {fields} fields"
        if _MARK in line:
            for column, field in enumerate(line.split("\t")):
                self._take_field(field, column)
        else:
            self._as_excel = self._as_excel and "," not in line
            self._as_spaced = self._as_spaced and " " not in line

    def _take_single(self, line: str) -> None:
        odd = line.count(_MARK) % 2 == 1
        if self._open:
            inside = line.removesuffix(_MARK) if odd else line
            self._explained &= (not odd or line.endswith(_MARK)) and _MARK not in inside.replace(_MARK * 2, "")
        elif _MARK in line:
            self._explained &= line.startswith(_MARK) and (odd or _CLOSED.fullmatch(line) is not None)
        self._open ^= odd

    def _take_field(self, field: str, column: int) -> None:
        quoted = field.startswith(_MARK)
        inside = field[1:-1] if quoted else field
        if field != _MARK * 2:  # nothing, which some write so beside what is missing
            self._as_pandas &= quoted == (_MARK in inside)
            self._as_excel &= quoted == (_MARK in inside or "," in inside)
            self._as_spaced &= quoted == (_MARK in inside or " " in inside)
        if quoted:
            self.opened += 1
            self._closed = self._closed and _CLOSED.fullmatch(field) is not None
            if column < len(self._by_column):
                self._by_column[column] += 1
        elif _MARK in field:
            self._by_column = [-1] * len(self._by_column)  # who quotes whole columns would have quoted this one

    @property
    def quoted(self) -> bool:
        """Whether the file is to be read as CSV with tabs.

        No file without quoting has marks around its columns' names. Else, where each line has its fields, lines are
        rows, and marks are left out only if they stand just where a writer of CSV sets them. Where some line has not,
        fields with line ends are what can explain it. A single column always has its fields: there, marks that are all
        explained as CSV's are.
        """
        if self._quoted_header or self.ragged is not None:
            return True
        if len(self._by_column) == 1 and not self._closed:
            return self._explained and not self._open
        columns = all(count in (0, self.rows) for count in self._by_column)
        return self._closed and (self._as_pandas or self._as_excel or self._as_spaced or columns)

    def note(self, where: str, rows: int, *, quoted: bool) -> str:
        """How the file was read, and to how many rows, in a sentence."""
        begin = f"The {where} file has {self.opened:,} fields that begin with a quotation mark"
        if not quoted:
            return f"{begin}; as its lines are rows without quoting, the marks are read as parts of the texts."
        lines = f"; {self.rows:,} lines are {rows:,} rows" * (rows != self.rows)
        return f"{begin}, which quote as in CSV and are not read as parts of the texts{lines}."
