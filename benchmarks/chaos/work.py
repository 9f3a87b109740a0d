"""The jobs: an uploaded teacher and data set, and submits over HTTP that are repeated until they are answered."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos.plan import RANKED_EVERY, RANKS
from tests.tiny import write_tiny_bert, write_tiny_dataset

_START_SECONDS = 60.0
_PAUSE = 0.3


def wait_until_ready(url: str) -> None:
    """Raises RuntimeError where the API does not answer within a minute."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} was not ready within {_START_SECONDS:.0f} s")


def upload(url: str, folder: Path, epochs: int) -> dict[str, Any]:
    """Upload a tiny teacher and its data; the body of every job."""
    write_tiny_bert(folder / "teacher", layers=4)
    data = write_tiny_dataset(folder / "data", rows=160)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder / "teacher", arcname="teacher")
    splits = {name: (f"{name}.parquet", (data / f"{name}.parquet").read_bytes()) for name in ("train", "test")}
    with httpx.Client(base_url=url, timeout=60) as http:
        teacher = http.post("/v1/models", files={"file": ("t.tar.gz", packed.getvalue())}, data={"name": "tiny"})
        dataset = http.post("/v1/datasets", files=splits, data={"name": "areas"})
    return {
        "teacher": {
            "source": f"model:{teacher.raise_for_status().json()['id']}",
            "finetune": {"epochs": epochs // 2, "learning_rate": 5e-3},
        },
        "dataset": f"dataset:{dataset.raise_for_status().json()['id']}",
        "student": {"layers": 2},
        "method": "kd",
        "evaluation": {"baseline": False},
        "training": {"epochs": epochs, "learning_rate": 5e-3, "max_length": 32, "batch_size": 8},
        "export": [],
    }


class Submitter:
    """A client that submits what it is asked for, each under a key of its own, again until the API answers."""

    def __init__(self, url: str, body: Mapping[str, Any]) -> None:
        self._url = url
        self._body = body
        self._wanted = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="submit", daemon=True)
        #: Key to the job's id, of every submit that was answered with 202.
        self.accepted: dict[str, str] = {}
        self.repeated = 0
        #: An answer that was neither 202 nor a reason to try again.
        self.refused: str | None = None

    def start(self) -> None:
        self._thread.start()

    def ask_for(self, total: int) -> None:
        """So many jobs are to be submitted in all."""
        with self._changed:
            self._wanted = max(self._wanted, total)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(30)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as http:
            while self._next_is_wanted():
                key = f"chaos-{len(self.accepted)}"
                if (job_id := self._submit(http, key)) is not None:
                    self.accepted[key] = job_id
                else:
                    self.repeated += 1
                    time.sleep(_PAUSE)

    def _next_is_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self.accepted) < self._wanted)
            return not self._closing and self.refused is None

    def _job(self, key: str) -> dict[str, Any]:
        """The same body under the same key, whenever it is sent."""
        ranked = int(key.rpartition("-")[2]) % RANKED_EVERY == 1
        training = self._body["training"] | ({"devices": RANKS} if ranked else {})
        return {**self._body, "name": key, "training": training}

    def _submit(self, http: httpx.Client, key: str) -> str | None:
        try:
            answer = http.post("/v1/jobs", json=self._job(key), headers={"Idempotency-Key": key})
        except httpx.TransportError:
            return None
        if answer.status_code == httpx.codes.ACCEPTED:
            return str(answer.json()["id"])
        if answer.status_code < 500:
            self.refused = f"{answer.status_code}: {answer.text[:500]}"
        return None
