"""Cells of a table as encoded images: bytes, the hub's ``{"bytes", "path"}``, or base64; each fault told by its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.data.cells import kind, object_cell, require_whole
from limbeck.data.table import fault
from limbeck.errors import InvalidInput

#: Characters of an image's name, its path's end.
_LONGEST = 120
#: How the formats that are read begin, in base64.
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "UklGR", "Qk", "R0lGOD", "data:image/")
_FEWEST = 60  # characters of base64: no image is shorter


def looks_like_image(cell: Any) -> bool:
    """Whether a cell is one, as far as can be told at a glance."""
    if isinstance(cell, Mapping):
        return cell.keys() <= {"bytes", "path"} and isinstance(cell.get("bytes"), bytes | str)
    if isinstance(cell, str):
        return cell.startswith(_BEGINNINGS) and len(cell) >= _FEWEST and " " not in cell
    return isinstance(cell, bytes)


def image_cell(value: Any, row: int, column: str, where: str) -> tuple[bytes, str]:
    """The encoded image, and what it is called: the end of its path, or its row.

    Raises:
        InvalidDataset: it is missing, too large, or cannot be decoded.
    """
    from limbeck.runtime.images import from_base64, opened

    place, path = f"row {row}, column {column!r}", None
    cell = object_cell(value, row, column, where)
    if isinstance(cell, Mapping):
        path, cell = cell.get("path"), cell.get("bytes")
        if cell is None and path:
            raise fault(where, f"{place}: found the path {path!r} alone; the image itself has to be in the file")
    if cell is None or cell in ("", b""):
        raise fault(where, f"{place}: the image is missing")
    if not isinstance(cell, bytes | str):
        raise fault(where, f"{place}: found {kind(value)}; expected an image: its bytes, or base64 of them")
    try:
        data = cell if isinstance(cell, bytes) else from_base64(cell)
        opened(data)
    except InvalidInput as error:
        raise fault(where, f"{place}: {error.message}") from error
    if isinstance(path, str):
        require_whole(path, row, column, where)
    return data, path[-_LONGEST:] if isinstance(path, str) and path else f"{where} row {row}"
