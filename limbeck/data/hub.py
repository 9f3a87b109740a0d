"""Data sets of the Hugging Face hub, by ``datasets``; the revision that a name meant is resolved and recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from limbeck.config import Dataset
from limbeck.data.loading import wanted_splits
from limbeck.data.table import Table
from limbeck.errors import InvalidDataset, Problem, Unavailable

_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_tables(spec: Dataset) -> tuple[dict[str, Table], str]:
    """Fetch a data set's splits, and say which commit they are of.

    Raises:
        InvalidDataset: there is no such data set, subset or split, or it needs code of its own to load.
        Unavailable: the hub does not answer and its local cache has no copy.
    """
    folder, revision = _snapshot(spec)
    splits = _open(folder, spec)
    tables = {where: _table(splits[name]) for where, name in wanted_splits(spec.splits, splits.keys()).items()}
    return tables, revision


def _snapshot(spec: Dataset) -> tuple[Path, str]:
    """The data set's files at one commit, from the hub or from its local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(spec.source, repo_type="dataset", revision=spec.revision))
    except RepositoryNotFoundError as error:
        raise _fault("source", f"the hub has no data set {spec.source!r} (or it is private)") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(f"The hub does not answer, and its local cache has no data set {spec.source!r}.") from error
    except HfHubHTTPError as error:
        raise _fault("revision", f"the hub has no revision {spec.revision!r} of {spec.source!r}: {error}") from error
    # A snapshot lies in a folder that is named by its commit.
    return folder, folder.name if _COMMIT.fullmatch(folder.name) else (spec.revision or "")


def _open(folder: Path, spec: Dataset) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(str(folder), spec.subset)
    except ValueError as error:
        raise _fault("subset", f"{spec.source!r} cannot be loaded with subset {spec.subset!r}: {error}") from error
    except RuntimeError as error:
        raise _fault(
            "source", f"{spec.source!r} needs code of its own to load, which Limbeck does not run: {error}"
        ) from error
    except (datasets.exceptions.DatasetGenerationError, FileNotFoundError) as error:
        raise _fault("source", f"{spec.source!r} has no data that can be read: {error}") from error


def _table(split: Any) -> Table:
    import datasets

    features = split.features
    names = {name: tuple(one.names) for name, one in features.items() if isinstance(one, datasets.ClassLabel)}
    return Table({name: list(split[name]) for name in split.column_names}, len(split), names)


def _fault(field: str, detail: str) -> InvalidDataset:
    return InvalidDataset(f"dataset.{field}: {detail}", [Problem(f"/dataset/{field}", detail)])
