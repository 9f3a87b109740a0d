"""What tells a full disk from any other failure. Imports no torch: a process that only starts ranks has none."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from limbeck.errors import StorageFull

#: Error numbers of a disk or a quota that is used up, and of a file that may not grow.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def full_disk(error: BaseException | None) -> StorageFull | None:
    """What an error means where a full disk is, however far down, what it was raised from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return StorageFull(f"The disk took no more bytes: {error.strerror}.")
        error = error.__cause__
    return None


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk, as Python words it, becomes :class:`StorageFull`."""
    try:
        yield
    except OSError as error:
        if (full := full_disk(error)) is not None:
            raise full from error
        raise
