"""Fetching repositories of the Hugging Face hub, whole or from the local cache, at a commit that is recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import InvalidDataset, InvalidInput, InvalidModel, Problem, Unavailable

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WORDS = {"model": "model", "dataset": "data set"}


def snapshot(
    kind: Literal["model", "dataset"],
    name: str,
    revision: str | None,
    files: Sequence[str],
    poll: Callable[[], None] = lambda: None,
) -> tuple[Path, str | None]:
    """The folder of a repository's files, and the commit that ``revision`` (default: the main branch) meant.

    Args:
        files: patterns of what is fetched; the rest of the repository stays where it is.
        poll: called whenever bytes have come, by several threads; may raise to stop.

    Raises:
        InvalidModel, InvalidDataset: the hub has no such repository or revision, or does not give it out.
        Unavailable: the hub does not answer and the local cache has no copy.
    """
    from huggingface_hub import errors, snapshot_download

    what, field = _WORDS[kind], "source"
    try:
        folder = Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=list(files), tqdm_class=_bar(poll)
            )
        )
    except errors.HFValidationError as error:
        detail = f"{name!r} is not a name that the hub can have: {error}"
    except errors.GatedRepoError:
        detail = f"the hub gives {name!r} only to those who accepted its terms: do so there, and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        detail = f"the hub has no {what} {name!r}, or keeps it private (HF_TOKEN would say who asks)"
    except errors.RevisionNotFoundError:
        field, detail = "revision", f"the hub's {what} {name!r} has no revision {revision!r}"
    except errors.LocalEntryNotFoundError as error:
        raise Unavailable(f"The hub does not answer, and its local cache has no {what} {name!r}.") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # its HTTP library's root: httpx's or httpx2's
        raise Unavailable(f"The hub could not be asked for the {what} {name!r}: {error}") from error
    else:
        # A snapshot lies in a folder that is named by its commit.
        return folder, folder.name if _COMMIT.fullmatch(folder.name) else revision
    raise fault(kind, field, detail)


def _bar(poll: Callable[[], None]) -> type[Any]:
    """The client's progress bar is what hears of bytes that have come."""
    from huggingface_hub.utils.tqdm import tqdm

    class Polling(tqdm):
        def update(self, n: float | None = 1) -> Any:
            poll()
            return super().update(n)

    return Polling


def fault(kind: Literal["model", "dataset"], field: str, detail: str) -> InvalidInput:
    """An error about a field of the configuration's teacher or data set."""
    part, error = ("teacher", InvalidModel) if kind == "model" else ("dataset", InvalidDataset)
    return error(f"{part}.{field}: {detail}", [Problem(f"/{part}/{field}", detail)])
