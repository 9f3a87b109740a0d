"""Brings the state of a run from rank 0's disk to those of the other hosts, by the ranks' own connections.

The storage would have it too, but a checkpoint reaches it a little later, and the ranks of a training have to begin
from one and the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK = 16 * 1024 * 1024


def copy_files(folder: Path, names: Sequence[str], group: Any, *, exactly: bool) -> None:
    """Have every folder hold these files of rank 0's; called by the first rank of each host.

    Args:
        folder: this host's.
        names: rank 0's word counts. What a host has already is not sent: a name with a hash in it tells the content.
        group: of these ranks.
        exactly: remove what else the others have.
    """
    leads = dist.get_rank() == 0
    found: list[Any] = [{name: (folder / name).stat().st_size for name in names} if leads else None]
    dist.broadcast_object_list(found, src=0, group=group)
    sizes: dict[str, int] = found[0]
    if exactly and not leads:
        _keep_only(folder, sizes)
    lacking: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(lacking, [name for name in sizes if not _whole(folder / name, sizes[name])], group=group)
    for name in sizes:
        if any(name in one for one in lacking):
            _copy(folder / name, sizes[name], leads, group)


def _keep_only(folder: Path, sizes: dict[str, int]) -> None:
    """Remove what is no more, and what has no hash in its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in sizes or path.name.count(".") < 2:
            path.unlink()


def _whole(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _copy(path: Path, size: int, leads: bool, group: Any) -> None:
    if leads:
        with path.open("rb") as file:
            for chunk in _chunks(size):
                file.readinto(chunk.numpy().data)
                dist.broadcast(chunk, src=0, group=group)
        return
    aside = path.with_name(f"{path.name}.partial")  # whoever has mapped the file keeps it as it is
    with aside.open("wb") as file:
        for chunk in _chunks(size):
            dist.broadcast(chunk, src=0, group=group)
            file.write(chunk.numpy().data)
    aside.replace(path)


def _chunks(size: int) -> Iterator[Tensor]:
    """Room for so many bytes, piece by piece."""
    for start in range(0, size, _CHUNK):
        yield torch.empty(min(_CHUNK, size - start), dtype=torch.uint8)
