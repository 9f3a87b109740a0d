"""The calls of a Limbeck server as methods."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from limbeck.client import packing, uploads
from limbeck.client.connection import Connection
from limbeck.client.downloads import Download, OnBytes
from limbeck.client.events import read_events
from limbeck.client.records import Alias, Attempt, Dataset, Event, Job, Listing, Model, ModelFile
from limbeck.config import Columns, DistillConfig
from limbeck.errors import InvalidInput, Unavailable
from limbeck.scorecard import HARD_SAMPLES, Scorecard

#: The server sends a comment every 15 s while nothing happens.
_SILENT_STREAM = 45.0


class Client:
    """A Limbeck server, from a program or a notebook.

    Every method raises the :mod:`limbeck.errors` class that the server's problem names, and ``Unavailable`` where
    there is no server. Calls that may safely reach the server twice are made again when it is away for a moment;
    ``submit`` always carries an idempotency key, so that a repeat answers the job of the first call.

    Args:
        base_url: where the server listens.
        timeout: seconds that it may take to answer.
        retries: how often a repeatable call is made again.
        backoff: seconds before the first repeat; doubled each time.
        transport: replaces the network, e.g. ``httpx.MockTransport``.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 0.25,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(base_url, timeout=timeout, retries=retries, backoff=backoff, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    @property
    def base_url(self) -> str:
        return self._connection.base_url

    # Jobs

    def submit(
        self,
        config: DistillConfig | Mapping[str, Any],
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        owner: str | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a distillation.

        Raises:
            InvalidInput: ``problems`` names each field that is wrong.
        """
        extras = {
            "name": name,
            "metadata": dict(metadata) if metadata else None,
            "owner": owner,
            "priority": priority,
        }
        body = _document(config) | {key: value for key, value in extras.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return Job.model_validate(self._connection.json("POST", "/v1/jobs", json=body, headers=headers))

    def validate(self, config: DistillConfig | Mapping[str, Any]) -> dict[str, Any]:
        """Check a configuration without queueing it; gives it with every default filled in."""
        answer: dict[str, Any] = self._connection.json("POST", "/v1/jobs:validate", json=_document(config))
        return answer

    def job(self, job_id: str) -> Job:
        return Job.model_validate(self._connection.json("GET", f"/v1/jobs/{job_id}"))

    def jobs(
        self,
        *,
        status: str | None = None,
        method: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Listing[Job]:
        """A page of jobs, newest first. ``next_cursor`` of one page is the ``cursor`` of the next."""
        params = _given(status=status, method=method, limit=limit, cursor=cursor)
        params |= {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return Listing[Job].model_validate(self._connection.json("GET", "/v1/jobs", params=params))

    def cancel(self, job_id: str) -> Job:
        return self._change(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        return self._change(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Go on with a paused job, or with a failed one whose error is ``retryable`` and that has a checkpoint."""
        return self._change(job_id, "resume")

    def rerun(self, job_id: str) -> Job:
        """A new job with the same configuration, seed, data and revisions."""
        return self._change(job_id, "rerun", headers={"Idempotency-Key": str(uuid.uuid4())})

    def delete(self, job_id: str, *, keep_models: bool = False) -> None:
        """Remove a job that has ended, with its models unless they are kept.

        Raises:
            Conflict: it has not ended.
        """
        params = {"keep_models": "true"} if keep_models else {}
        self._connection.call("DELETE", f"/v1/jobs/{job_id}", repeatable=False, params=params)

    def _change(self, job_id: str, verb: str, *, headers: Mapping[str, str] | None = None) -> Job:
        return Job.model_validate(self._connection.json("POST", f"/v1/jobs/{job_id}/{verb}", headers=headers))

    # What a job tells

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """The events behind number ``after`` that there are now."""
        events: list[Event] = []
        while True:
            page = self._connection.json("GET", f"/v1/jobs/{job_id}/events", params={"after": after})
            events += [Event.model_validate(one) for one in page["data"]]
            if not page.get("has_more"):
                return events
            after = events[-1].sequence

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """Events as they happen, until the job has ended. A connection that breaks off is taken up where it broke.

        Raises:
            Unavailable: the server stayed away over all retries.
        """
        fruitless = 0
        while True:
            try:
                for event in self._stream_events(job_id, after):
                    fruitless, after = 0, event.sequence
                    yield event
                if self.job(job_id).ended:
                    yield from self._rest(job_id, after)
                    return
            except Unavailable:
                fruitless += 1
                if fruitless > self._connection.retries:
                    raise
            self._connection.pause(fruitless)

    def _stream_events(self, job_id: str, after: int) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        path = f"/v1/jobs/{job_id}/events"
        with self._connection.stream(path, headers=headers, timeout=_SILENT_STREAM) as response:
            yield from read_events(response.iter_text())

    def _rest(self, job_id: str, after: int) -> Iterator[Event]:
        """A proxy may have ended the stream, and the job may have ended in between."""
        while page := self.events(job_id, after=after):
            yield from page
            after = page[-1].sequence

    def wait(self, job_id: str, *, poll_seconds: float = 1.0, timeout: float | None = None) -> Job:
        """The job once it has ended, well or not; ``job.student_id`` raises where it has no student.

        Raises:
            TimeoutError: it has not ended after ``timeout`` seconds. It goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (job := self.job(job_id)).ended:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"Job {job_id} is still {job.status} after {timeout:g} s.")
            time.sleep(poll_seconds)
        return job

    def logs(self, job_id: str) -> str:
        """What the job's processes printed."""
        return self._connection.call("GET", f"/v1/jobs/{job_id}/logs").text

    def metrics(self, job_id: str, *, max_points: int | None = None) -> dict[str, list[dict[str, Any]]]:
        """Series by name, e.g. ``distilling/loss``: points ``{"step", "value", "at"}``, thinned to ``max_points``."""
        params = _given(max_points=max_points)
        answer = self._connection.json("GET", f"/v1/jobs/{job_id}/metrics", params=params)
        series: dict[str, list[dict[str, Any]]] = answer["series"]
        return series

    def attempts(self, job_id: str) -> list[Attempt]:
        """Who ran the job, from which step, and how each attempt ended."""
        page = self._connection.json("GET", f"/v1/jobs/{job_id}/attempts")
        return [Attempt.model_validate(one) for one in page["data"]]

    def scorecard(self, job_id: str) -> Scorecard:
        """Teacher, student and baseline side by side.

        Raises:
            LimbeckError: the job has none, or none yet.
        """
        return Scorecard.model_validate(self._connection.json("GET", f"/v1/jobs/{job_id}/scorecard"))

    def hard_samples(self, job_id: str, target: Path | str) -> Path:
        """Fetch the table of how hard each training and validation example is for the job's student.

        Args:
            target: a ``.csv`` or ``.parquet`` to write.

        Raises:
            InvalidInput: ``target`` has another ending.
            LimbeckError: the job has no student, or was told not to measure this.
        """
        target = Path(target)
        names = {Path(name).suffix: name for name in HARD_SAMPLES}
        if target.suffix not in names:
            raise InvalidInput(f"{target} has to end in {' or '.join(names)}.")
        path = f"/v1/models/{self.job(job_id).student_id}/files/{names[target.suffix]}"
        return Download(self._connection, path, {}, target, None).run()

    # Data sets and models

    def upload_dataset(
        self,
        source: Path | str | Mapping[str, Path | str],
        *,
        name: str | None = None,
        columns: Columns | None = None,
        task: str | None = None,
    ) -> Dataset:
        """Upload a data set.

        Args:
            source: a file (it is ``train``, and the server cuts the other splits from it), a folder with files named
                ``train.…``, ``validation.…`` and ``test.…``, a folder of images as ``train/<label>/picture.png``, or a
                mapping from split to file.
            name: for people; default: the name of the file or folder.
            columns: which column holds what; the server guesses from the usual names.
            task: what the data are for, e.g. ``regression``; the server's default is what columns and labels say.

        Raises:
            InvalidDataset: the message names row and column.
        """
        return uploads.upload_dataset(self._connection, source, name, columns, task)

    def dataset(self, dataset_id: str) -> Dataset:
        return Dataset.model_validate(self._connection.json("GET", f"/v1/datasets/{dataset_id}"))

    def datasets(self, *, limit: int = 20, cursor: str | None = None) -> Listing[Dataset]:
        params = _given(limit=limit, cursor=cursor)
        return Listing[Dataset].model_validate(self._connection.json("GET", "/v1/datasets", params=params))

    def upload_model(self, source: Path | str, *, name: str | None = None) -> Model:
        """Upload a teacher: a Hugging Face folder with safetensors, or a ``.tar.gz`` or ``.zip`` of one."""
        return uploads.upload_model(self._connection, source, name)

    def model(self, model_id: str) -> Model:
        return Model.model_validate(self._connection.json("GET", f"/v1/models/{model_id}"))

    def models(self, *, limit: int = 20, cursor: str | None = None) -> Listing[Model]:
        params = _given(limit=limit, cursor=cursor)
        return Listing[Model].model_validate(self._connection.json("GET", "/v1/models", params=params))

    def model_files(self, model_id: str) -> list[ModelFile]:
        page = self._connection.json("GET", f"/v1/models/{model_id}/files")
        return [ModelFile.model_validate(one) for one in page["data"]]

    def download(
        self, model_id: str, target: Path | str, *, format: str = "safetensors", on_bytes: OnBytes | None = None
    ) -> Path:
        """Fetch a model, checked against its sha256; a download that broke off goes on when it is called again.

        Args:
            target: a folder to unpack into, or the name of a ``.tar.gz`` to keep as it is.
            format: ``safetensors``, or a form of :data:`limbeck.formats.FILES`: ``onnx``, ``onnx-int8``, ….
            on_bytes: called with the bytes that are here and the bytes of the whole.

        Raises:
            InvalidInput: there is something at ``target`` already.
        """
        path, target = f"/v1/models/{model_id}/download", Path(target)
        if packing.is_archive(target):
            return Download(self._connection, path, {"format": format}, target, on_bytes).run()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InvalidInput(f"{target} exists already and is not an empty folder.")
        whole = target.absolute()  # "." has no name
        archive = whole.with_name(f".{whole.name}.{format}.tar.gz")
        Download(self._connection, path, {"format": format}, archive, on_bytes).run()
        packing.unpack_model(archive, target)
        archive.unlink()
        return target

    def aliases(self) -> list[Alias]:
        """All of them, by name."""
        return [Alias.model_validate(one) for one in self._connection.json("GET", "/v1/aliases")["data"]]

    def alias(self, name: str) -> Alias:
        return Alias.model_validate(self._connection.json("GET", _alias(name)))

    def set_alias(self, name: str, model_id: str, *, version: int | None = None) -> Alias:
        """Let a name mean a model, from the next request on; the model before answers until this one is loaded.

        Args:
            model_id: a model, or another alias, whose model it then is.
            version: of the alias that was seen; 0: there was none. Default: whatever it means now.

        Raises:
            Stale: it has another version by now.
        """
        headers = {"If-None-Match": "*"} if version == 0 else _if_version(version)
        answer = self._connection.json(
            "PUT", _alias(name), repeatable=version is None, json={"model": model_id}, headers=headers
        )
        return Alias.model_validate(answer)

    def delete_alias(self, name: str, *, version: int | None = None) -> None:
        """Remove a name; the model that it means stays.

        Raises:
            Stale: it has another version than ``version`` by now.
        """
        self._connection.call("DELETE", _alias(name), repeatable=False, headers=_if_version(version))

    def predict(self, model_id: str, inputs: Any, *, top_k: int | None = None, speed: float | None = None) -> Any:
        """Ask a student; answers have the shapes of Hugging Face pipelines.

        Args:
            inputs: a text, ``{"text": …, "text_pair": …}``, ``{"question": …, "context": …}``, ``{"tokens": […]}``, or
                a list of these.
            top_k: so many labels, best first.
            speed: of a student with early exits, from 0 (all layers) to 1; default: its own.
        """
        parameters = _given(top_k=top_k, speed=speed)
        body = {"inputs": inputs} | ({"parameters": parameters} if parameters else {})
        return self._connection.json("POST", f"/v1/models/{model_id}/predict", json=body)

    def ready(self) -> bool:
        """Whether the server takes requests now. False also where there is none."""
        try:
            return self._connection.call("GET", "/readyz", repeatable=False).is_success
        except Unavailable:
            return False


def _document(config: DistillConfig | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(config, DistillConfig):
        return config.model_dump(mode="json")
    return dict(config)


def _alias(name: str) -> str:
    return f"/v1/aliases/{quote(name, safe='')}"


def _if_version(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
