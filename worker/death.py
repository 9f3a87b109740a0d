"""``python -m worker.death PARENT MODULE …`` runs a module that ends with its parent; ``PARENT`` is the process id of
whoever starts it."""

from __future__ import annotations

import runpy
import sys

from limbeck.death import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
