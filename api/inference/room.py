"""How many texts may wait, and how many of them for one student."""

from __future__ import annotations

#: How much a student may have of the room that there is: so many times what it leaves to the others. One that is asked
#: alone has three quarters, two have three sevenths each, and there is always some for a student that has none yet
#: (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
_SHARE = 3


class Room:
    """What is held of it by each student; every call by the one that holds the batcher's lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.texts = 0  #: of all students
        self._of: dict[int, int] = {}

    def of(self, student: object) -> int:
        """Texts that this student holds."""
        return self._of.get(id(student), 0)

    def allows(self, texts: int, *, own: int, waiting: int) -> bool:
        """Whether so many more are let in: of a student that has ``own``, where ``waiting`` are there in all.

        More than all the room there is gets in when nothing else waits.
        """
        return not waiting or (waiting + texts <= self.limit and own + texts <= _SHARE * (self.limit - waiting))

    def hold(self, student: object, texts: int) -> None:
        self.texts += texts
        self._of[id(student)] = self._of.get(id(student), 0) + texts

    def leave(self, student: object, texts: int) -> None:
        self.texts -= texts
        left = self._of.pop(id(student), 0) - texts
        if left:
            self._of[id(student)] = left
