"""The limit: the same runtime with the same number of callers, without HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.serving.limbeck_server import FORMS
from benchmarks.serving.load import Load
from limbeck.runtime import Predictor


def in_process(
    student: Path, texts: Sequence[str], seconds: float, layers: int, kind: str, clients: Sequence[int]
) -> list[Load]:
    """Texts per second of both forms; as many callers as there are cores share the clients' texts."""
    found = []
    for form in FORMS:
        predictor = Predictor.load(student, format=form)  # type: ignore[arg-type]
        for count in clients:
            callers = min(count, os.cpu_count() or 1)
            window = max(1, count // callers)
            slices = [list(texts[i : i + window]) for i in range(0, len(texts) - window + 1, window)]
            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(predictor.predict, slices[:8]))
                began, done = time.perf_counter(), 0
                while time.perf_counter() - began < seconds:
                    list(pool.map(predictor.predict, slices))
                    done += len(slices) * window
                rate = done / (time.perf_counter() - began)
            found.append(Load(f"in process {form}", layers, kind, count, rate, 0, 0, 0, 0))
    return found
