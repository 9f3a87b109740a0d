"""What a pass over a split has found so far, in the run's state: an interrupted one goes on where it stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.errors import Interrupted

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.run import Run


class Begun:
    """Of a pass whose batches are the same, in the same order, in every attempt.

    Args:
        role: where the state keeps it, until :meth:`CheckpointStore.drop`; None: nowhere. Of several ranks, each of
            which has a part of it, nothing is kept.
    """

    def __init__(self, run: Run, role: str | None) -> None:
        self._run = run
        self._role = role if run.ranks.count == 1 else None
        self.tensors: dict[str, Tensor] = {}
        self.batches = 0  #: so many are done
        if self._role is not None and run.store.has(self._role):
            self.tensors, facts = run.store.read_tensors(self._role)
            self.batches = facts["batches"]

    def between(self, batches: int) -> None:
        """Call before each batch, with how many are done.

        Raises:
            Interrupted: they are staged.
        """
        self.batches = batches
        try:
            self._run.poll()
        except Interrupted:
            self._stage()
            raise
        if self._role is not None and self._run.save_due():
            self._stage()
            self._run.commit()

    def finish(self, batches: int) -> None:
        """All of them are done."""
        self.batches = batches
        self._stage()

    def _stage(self) -> None:
        if self._role is not None:
            self._run.store.write_tensors(self._role, self.tensors, {"batches": self.batches})
