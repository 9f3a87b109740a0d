"""Data sets of the Hugging Face hub, by ``datasets``; the revision that a name meant is resolved and recorded.

The files are fetched by the hub's client and loaded from its cache, not by name: so they load offline as well, and
what was loaded is what the commit says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import hub
from limbeck.config import Dataset
from limbeck.data.hub_tabs import HubTabs
from limbeck.data.image_archives import archive_table, archived_splits
from limbeck.data.loading import wanted_splits
from limbeck.data.table import Foreign, Table
from limbeck.errors import InvalidInput
from limbeck.full_disk import full_disk

#: Bytes of images that a data set's archives may unpack to: they are all in memory before the first is prepared.
_UNPACKED = 4 * 1024**3
#: Tables and what describes them; ``*.py`` tells that a data set would need its own code. No images, sound or models.
_FILES = [
    f"*{suffix}"
    for suffix in (
        ".arrow",
        ".csv",
        ".gz",
        ".json",
        ".jsonl",
        ".parquet",
        ".py",
        ".tsv",
        ".txt",
        ".yaml",
        ".zip",
        ".zst",
    )
] + ["README.md"]


def load_tables(spec: Dataset, poll: Callable[[], None] = lambda: None) -> tuple[dict[str, Table], str | None]:
    """Fetch a data set's splits, and say which commit they are of.

    Args:
        poll: called while they come, by several threads; may raise to stop.

    Raises:
        InvalidDataset: there is no such data set, subset or split, or it needs code of its own to load.
        Unavailable: the hub does not answer and its local cache has no copy.
        StorageFull: this machine's disk has no room for it.
    """
    folder, revision = hub.snapshot("dataset", spec.source, spec.revision, _FILES, poll)
    if (folder / f"{spec.source.rpartition('/')[2]}.py").exists():
        detail = (
            f"{spec.source!r} needs code of its own to load, which is not run; "
            "the hub may have it as plain files: try the revision 'refs/convert/parquet'"
        )
        raise _fault("source", detail)
    if spec.subset is None and (archived := archived_splits(folder)):
        with _readable(spec):
            _require_subset(str(folder), spec)
        wanted = wanted_splits(spec.splits, archived.keys())
        share = _UNPACKED // len(wanted)
        return {where: archive_table(archived[name], where, share) for where, name in wanted.items()}, revision
    splits, tabs = _open(str(folder), spec)
    tables = {}
    for where, name in wanted_splits(spec.splits, splits.keys()).items():
        table = _table(splits[name], folder)
        tables[where] = replace(table, notes=tabs.notes(name, where, table.rows))
    return tables, revision


def _open(folder: str, spec: Dataset) -> tuple[Any, HubTabs]:
    """Its splits, and what its TSV files say of quoting."""
    import datasets

    with _readable(spec):
        _require_subset(folder, spec)
        tabs = HubTabs.of(folder, spec.subset)
        if tabs.mixed:
            raise _fault(
                "source", f"{spec.source!r} has TSV files with quoting and without, which are not read together"
            )
        return datasets.load_dataset(folder, spec.subset, **tabs.options), tabs


def _require_subset(folder: str, spec: Dataset) -> None:
    """That there is the one that is asked for, or no choice."""
    import datasets

    subsets = datasets.get_dataset_config_names(folder)
    if spec.subset not in (None, *subsets):
        raise _fault("subset", f"found {spec.subset!r}; {spec.source!r} has {', '.join(subsets)}")
    if spec.subset is None and len(subsets) > 1 and "default" not in subsets:
        raise _fault("subset", f"{spec.source!r} has several, one has to be chosen: {', '.join(subsets)}")


@contextmanager
def _readable(spec: Dataset) -> Iterator[None]:
    import datasets

    datasets.disable_progress_bars()
    try:
        yield
    except (datasets.exceptions.DatasetsError, FileNotFoundError, RuntimeError, ValueError) as error:
        if (full := full_disk(error)) is not None:  # the data set is as good as before
            raise full from error
        raise _fault("source", f"{spec.source!r} has no data that can be read: {error.__cause__ or error}") from error


def _table(split: Any, folder: Path) -> Table:
    """Text, numbers, booleans, images, and lists and objects of these; other columns are told, not decoded."""
    import datasets

    names: dict[str, tuple[str, ...]] = {}
    columns: dict[str, list[Any]] = {}
    for name, feature in split.features.items():
        inner = feature
        while isinstance(inner, datasets.Sequence | datasets.List | datasets.LargeList):
            inner = inner.feature
        if isinstance(inner, datasets.ClassLabel):
            names[name] = tuple(inner.names)
        if isinstance(feature, datasets.Image):
            own = _own_places(folder)
            columns[name] = [_image(cell, own) for cell in split.cast_column(name, datasets.Image(decode=False))[name]]
        elif _is_plain(feature):
            columns[name] = list(split[name])
        else:
            columns[name] = [Foreign(str(feature))] * len(split)
    return Table(columns, len(split), names)


def _own_places(folder: Path) -> tuple[Path, Path]:
    """Where a data set's own files lie: those of its snapshot, which are links to others beside it, and the archives
    that ``datasets`` has unpacked."""
    import datasets

    return folder.parents[1].resolve(), Path(datasets.config.EXTRACTED_DATASETS_PATH).resolve()


def _image(cell: Any, own: tuple[Path, ...]) -> Any:
    """``{"bytes", "path"}``, its bytes from the data set's own files where it does not keep them in its tables.

    A table can name any file of this machine; what lies outside ``own`` stays unread.
    """
    if cell is None or cell["bytes"] is not None or cell["path"] is None:
        return cell
    try:
        file = Path(cell["path"]).resolve()
        if not any(file.is_relative_to(place) for place in own) or not file.is_file():
            return cell
    except (OSError, RuntimeError, ValueError):  # no file can have such a name
        return cell
    return {"bytes": file.read_bytes(), "path": cell["path"]}


def _is_plain(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Sequence | datasets.List | datasets.LargeList):
        return _is_plain(feature.feature)
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    return isinstance(feature, datasets.ClassLabel | datasets.Value)


def _fault(field: str, detail: str) -> InvalidInput:
    return hub.fault("dataset", field, detail)
