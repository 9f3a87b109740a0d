"""``limbeck up`` from its first moment on: Ctrl-C while the supervisor is still being imported, or makes its database,
ends it as Ctrl-C does later."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    from worker.supervisor import main as supervise

    return supervise()


if __name__ == "__main__":
    sys.exit(main())
