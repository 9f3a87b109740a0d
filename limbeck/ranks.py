"""The ranks of one training: processes that share every batch, and what they say to each other.

All ranks run the same phases from the same state. Each computes the gradient of its part of a batch; the sum over the
ranks is the gradient of the batch, so that all make the same step and hold the same weights. Rank 0 alone writes the
state and tells of progress; nothing that another rank holds is worth keeping. So a stop needs no agreement: a step is
made by all ranks or by none, since rank 0 takes part in each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import InvalidConfig, Problem, RankLost
from limbeck.memory import ran_out
from limbeck.rank_children import Meeting
from limbeck.state_copies import copy_files

T = TypeVar("T")
#: How long a rank waits for another one. Whoever started them ends all when one has gone, and the worker when none gets
#: on (``LIMBECK_STALL_SECONDS``); nothing else is too long, since rank 0 may encode a large data set meanwhile.
_PATIENCE = timedelta(days=7)
#: Gradients that are summed at a time: more would only cost memory.
_BUCKET = 16 * 1024 * 1024


class Ranks:
    """One rank alone: whatever is asked of all is done by itself."""

    number = 0
    count = 1
    here = 1  #: of them on this machine

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes the state and tells of progress."""
        return self.number == 0

    @property
    def place(self) -> int:
        """Of this rank among those on its machine, from 0."""
        return self.number % self.here

    def wait(self) -> None:
        """Until every rank has come here."""

    def first(self, work: Callable[[], T]) -> T:
        """What rank 0 finds by ``work``, on every rank."""
        return work()

    def bring(self, folder: Path, names: Sequence[str] = (), *, exactly: bool = True) -> None:
        """Have this folder of every machine hold these files of rank 0's, which alone names them, and no others if
        ``exactly``; those that a machine has already are not sent again, unless the name says nothing of the
        content."""

    def share(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""

    def seed_step(self, *numbers: int) -> None:
        """Have each rank draw otherwise in this step, by these numbers and its own alone.

        A checkpoint then needs no other rank's generators. One rank alone draws on from where it is.
        """

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        return tensor

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each gradient the sum over all ranks; what has none on any rank keeps having none."""

    def part(self) -> Ranks:
        """The other ranks are done; what this one goes on with."""
        return self


ALONE = Ranks()


class Group(Ranks):
    """One of several ranks, each a process, by ``torch.distributed``: gloo, and NCCL for what lies on GPUs.

    Args:
        number: of this rank, from 0.
        meeting: where the ranks find each other.
        threads: what rank 0 computes with when the others are done.
        arrived: called where the ranks meet, before they look for each other.
        parted: called when the others are done.

    Raises:
        InvalidConfig: the machine has GPUs, but not one for each of its ranks.
        RankLost: as from every other method; another rank has gone.
    """

    def __init__(
        self, number: int, meeting: Meeting, threads: int, arrived: Callable[[], None], parted: Callable[[], None]
    ) -> None:
        self.number, self.count, self.here = number, meeting.count, meeting.here
        self._threads, self._parted = threads, parted
        gpus = torch.cuda.device_count()
        if 0 < gpus < self.here:
            detail = f"found {self.here}; this machine offers {gpus} GPU{'s' * (gpus > 1)}, and each device is one"
            raise InvalidConfig(f"/training/devices: {detail}", [Problem("/training/devices", detail)])
        with _peers():
            store = _store(meeting, leads=number == 0)
            arrived()
            dist.init_process_group("gloo", store=store, rank=number, world_size=self.count, timeout=_PATIENCE)
            self._host: Any = dist.group.WORLD
            self._device = self._host
            if gpus:
                torch.cuda.set_device(self.place)
                self._device = dist.new_group(backend="nccl", timeout=_PATIENCE)
            #: The first rank of each host.
            self._firsts: Any = None
            if meeting.hosts > 1:
                self._firsts = dist.new_group(list(range(0, self.count, self.here)), timeout=_PATIENCE)

    def wait(self) -> None:
        with _peers():
            dist.barrier(group=self._host)

    def first(self, work: Callable[[], T]) -> T:
        found: list[Any] = [work() if self.leads else None]
        with _peers():
            dist.broadcast_object_list(found, src=0, group=self._host)
        result: T = found[0]
        return result

    def bring(self, folder: Path, names: Sequence[str] = (), *, exactly: bool = True) -> None:
        if self._firsts is None:
            return
        if self.place == 0:
            with _peers():
                copy_files(folder, names, self._firsts, exactly=exactly)
        self.wait()

    def share(self, module: nn.Module) -> None:
        with torch.no_grad(), _peers():
            for tensor in (*module.parameters(), *module.buffers()):
                values = tensor.detach().contiguous()
                dist.broadcast(values, src=0, group=self._group(values))
                tensor.copy_(values)

    def seed_step(self, *numbers: int) -> None:
        drawn = np.random.SeedSequence([*numbers, self.number]).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0]))

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        with _peers():
            dist.all_reduce(total, group=self._group(total))
        return total

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        # A parameter may have no gradient on a rank whose part of the batch had nothing for it; where it has none on
        # any rank, the optimizer has to pass it over, as it does on one device.
        known = self.sum(torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32))
        learning = [one for one, ranks in zip(parameters, known.tolist(), strict=True) if ranks]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([one.grad for one in learning if one.grad is not None]):
            total = self.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            start = 0
            for gradient in bucket:
                gradient.copy_(total[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()

    def part(self) -> Ranks:
        self.wait()
        if not self.leads:  # what is left is rank 0's; the launcher ends this process
            threading.Event().wait()
        self._parted()
        torch.set_num_threads(self._threads)
        return ALONE

    def _group(self, tensor: Tensor) -> Any:
        return self._device if tensor.is_cuda else self._host


def _store(meeting: Meeting, *, leads: bool) -> Any:
    """Where the ranks leave their addresses for each other."""
    if meeting.address is None:
        store = dist.FileStore(str(meeting.folder / "ranks"), meeting.count)  # type: ignore[attr-defined]
        store.set_timeout(_PATIENCE)
        return store
    host, port = meeting.address
    return dist.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        meeting.count,
        is_master=leads,
        timeout=_PATIENCE,
        wait_for_workers=False,
        master_listen_fd=meeting.listening if leads else None,
    )


def sum_values(ranks: Ranks, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each of these numbers the sum over all ranks, which name the same ones in the same order."""
    if ranks.count == 1:
        return dict(values)
    return dict(zip(values, ranks.sum(torch.stack([*values.values()])), strict=True))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(one.numel() for one in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def _peers() -> Iterator[None]:
    """An exchange that breaks off, however the backend words it, becomes :class:`RankLost`."""
    try:
        yield
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise RankLost(f"Another rank has gone: {(str(error).splitlines() or [''])[0]}") from error
