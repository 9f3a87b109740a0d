"""Reading Parquet without trusting it: a few kilobytes can stand for terabytes, and a string need not be UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from limbeck.data.table import Foreign, Table, fault
from limbeck.errors import InvalidDataset

#: Under this key of the schema Limbeck keeps the order of the labels, as JSON: ``{"label": ["neg", "pos"]}``.
LABELS_KEY = b"limbeck.labels"
#: Under this one the type of the task that the labels are of.
TASK_KEY = b"limbeck.task"
#: Under this one what was done to the data as they were taken in, as a list of sentences in JSON.
NOTES_KEY = b"limbeck.notes"
_POINTER_BYTES = 8


def read_parquet(stream: IO[bytes], where: str, max_unpacked_bytes: int) -> Table:
    """Read a file's columns of text, numbers, booleans, bytes, and lists and objects of these; others are told, and
    not decoded.

    Equal strings are one object in memory, so that a text which a file stores once costs its bytes once.

    Raises:
        InvalidDataset: it is no Parquet file, it is broken, or it unpacks to more than the limit.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(stream)
        stream.seek(0)
        strings = [path for one in schema for path in _strings_in(one.name, one.type)]
        file = pyarrow.parquet.ParquetFile(stream, read_dictionary=strings)
        _require_names(schema.names, where)
        _require_modest(file.metadata, where, max_unpacked_bytes)
        columns = {
            one.name: _read_column(file, one.name, _plain(one.type), where, max_unpacked_bytes) for one in schema
        }
    except (pyarrow.ArrowException, OSError, OverflowError) as error:
        raise fault(where, f"this is not a Parquet file that can be read: {error}") from error
    rows = file.metadata.num_rows
    if rows == 0 or not columns:
        raise fault(where, "the file has no rows")
    metadata = schema.metadata or {}
    task = metadata.get(TASK_KEY)
    named = None if task is None else task.decode(errors="replace")
    return Table(columns, rows, _label_names(metadata), named, _notes(metadata))


def _notes(metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    try:
        found = json.loads(metadata.get(NOTES_KEY, b"[]"))
    except (ValueError, RecursionError):
        return ()
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def _strings_in(path: str, kind: Any) -> Iterator[str]:
    """The paths of the texts and bytes in a column, as the reader names them."""
    from pyarrow import types

    if _is_text(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        yield path
    elif _is_list(kind):
        yield from _strings_in(f"{path}.list.{kind.value_field.name}", kind.value_type)
    elif types.is_struct(kind):
        for field in kind:
            yield from _strings_in(f"{path}.{field.name}", field.type)


def _require_names(names: list[str], where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise fault(where, f"the file has two columns of the name {twice[0]!r}")


def _require_modest(metadata: Any, where: str, limit: int) -> None:
    """Before anything is unpacked: what the file says of its own size, and of how many values it has, as a row can be a
    list of any length."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if max(sum(group.total_byte_size for group in groups), values * _POINTER_BYTES) > limit:
        raise _too_large(where, limit)


def _plain(kind: Any) -> Any:
    """The type of a column's values, whether or not they are stored through a dictionary."""
    import pyarrow

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _read_column(file: Any, name: str, kind: Any, where: str, limit: int) -> list[Any]:
    from pyarrow import types

    if _is_text(kind):
        return _strings(file, name, where, limit)
    if _is_list(kind) or types.is_struct(kind) or _is_image(kind):
        return _nested(file, name, kind, where, limit)
    known = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    if not known:
        return [Foreign(str(kind))] * file.metadata.num_rows
    values: list[Any] = []
    for index in range(file.num_row_groups):
        column = file.read_row_group(index, columns=[name]).column(name)
        values += column.cast(kind).to_pylist()
    return values


def _nested(file: Any, name: str, kind: Any, where: str, limit: int) -> list[Any]:
    """Lists and objects of texts and numbers, to any depth that Parquet has; and images."""
    if not (_decodable(kind) or _is_image(kind)):
        return [Foreign(str(kind))] * file.metadata.num_rows
    found: list[Any] = []
    size = 0
    for index in range(file.num_row_groups):
        column = file.read_row_group(index, columns=[name]).column(name)
        for chunk in column.chunks:
            try:
                found += _decoded(chunk)
            except UnicodeDecodeError:
                raise fault(where, f"column {name!r}: a text is not UTF-8") from None
        # Python's lists and texts: a pointer for each value, beside what the texts themselves take.
        size = sum(map(_weight, found))
        if size > limit:
            raise _too_large(where, limit)
    return found


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    """Of whatever length; polars writes the large kind."""
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind))


def _decodable(kind: Any) -> bool:
    from pyarrow import types

    if _is_list(kind):
        return _decodable(kind.value_type)
    if types.is_struct(kind):
        return kind.num_fields > 0 and all(_decodable(field.type) for field in kind)
    plain = _plain(kind)
    return _is_text(plain) or bool(types.is_integer(plain) or types.is_floating(plain) or types.is_boolean(plain))


def _is_image(kind: Any) -> bool:
    """Bytes, or the hub's ``{"bytes", "path"}``."""
    from pyarrow import types

    if types.is_struct(kind):
        return {field.name for field in kind} == {"bytes", "path"} and _is_image(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _decoded(array: Any) -> list[Any]:
    """An Arrow array as Python values, each distinct text decoded once."""
    from pyarrow import types

    if types.is_dictionary(array.type):
        texts = array.dictionary.to_pylist()
        return [None if place is None else texts[place] for place in array.indices.to_pylist()]
    if _is_list(array.type):
        values, ends = _decoded(array.values), array.offsets.to_pylist()
        whole = array.is_valid().to_pylist()
        return [values[a:b] if one else None for one, a, b in zip(whole, ends[:-1], ends[1:], strict=True)]
    if types.is_struct(array.type):
        names = [field.name for field in array.type]
        fields = [_decoded(one) for one in array.flatten()]
        whole = array.is_valid().to_pylist()
        rows = zip(whole, zip(*fields, strict=True), strict=True)
        return [dict(zip(names, values, strict=True)) if one else None for one, values in rows]
    values = array.to_pylist()
    return list(values)


def _weight(value: Any) -> int:
    if isinstance(value, list):
        return _POINTER_BYTES * (len(value) + 1) + sum(map(_weight, value))
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return len(value) if isinstance(value, str | bytes) else _POINTER_BYTES


def _strings(file: Any, name: str, where: str, limit: int) -> list[str | None]:
    """Texts, each distinct one decoded once for a row group."""
    found: list[str | None] = []
    size = 0
    for index in range(file.num_row_groups):
        column = file.read_row_group(index, columns=[name]).column(name)
        for chunk in column.chunks:
            coded = chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode()
            try:
                texts = coded.dictionary.to_pylist()
            except UnicodeDecodeError:
                raise _broken_utf8(coded, name, len(found), where) from None
            places = coded.indices.to_pylist()
            size += sum(len(texts[place]) for place in places if place is not None and texts[place] is not None)
            if size > limit:
                raise _too_large(where, limit)
            found += [None if place is None else texts[place] for place in places]
    return found


def _broken_utf8(coded: Any, name: str, before: int, where: str) -> InvalidDataset:
    import pyarrow

    binary = pyarrow.large_binary() if pyarrow.types.is_large_string(coded.dictionary.type) else pyarrow.binary()
    bad = set(_undecodable(coded.dictionary.cast(binary).to_pylist()))
    row = next((row for row, place in enumerate(coded.indices.to_pylist(), start=before + 1) if place in bad), None)
    place = f"row {row}, column {name!r}" if row else f"column {name!r}"
    return fault(where, f"{place}: the text is not UTF-8")


def _undecodable(values: list[bytes | None]) -> Iterator[int]:
    for place, value in enumerate(values):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            yield place


def _too_large(where: str, limit: int) -> InvalidDataset:
    return fault(where, f"the file unpacks to more than {limit:,} bytes")


def _label_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """The order of the labels, as Limbeck or the ClassLabel features of ``datasets`` have written it down."""
    try:
        if LABELS_KEY in metadata:
            return {name: tuple(labels) for name, labels in json.loads(metadata[LABELS_KEY]).items()}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        named = {name: _class_label(one) for name, one in features.items()}
        return {name: tuple(one["names"]) for name, one in named.items() if one is not None}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _class_label(feature: Any) -> Any:
    """A ClassLabel, or that of a list's elements (``Sequence`` or ``List``, or a bare list in old files)."""
    while feature is not None:
        if isinstance(feature, list):
            feature = feature[0]
        if feature.get("_type") == "ClassLabel":
            return feature
        feature = feature.get("feature")
    return None
