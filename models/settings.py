"""The one reader of the environment: every ``LIMBECK_…`` variable, its default, and what it means."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_serializer, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_USAGE_ERROR = 2
#: What the command line and the tests read.
_OTHERS = ["LIMBECK_URL", "LIMBECK_TEST_DATA", "LIMBECK_TEST_MANY_HOSTS"]

#: Thirty years of seconds, or as many gigabytes: what timers and the databases' numbers take.
_MOST = 1e9
#: A moment so long ago is a date still.
_MOST_DAYS = 100_000

Seconds = Annotated[float, Field(gt=0, le=_MOST)]
SecondsOrZero = Annotated[float, Field(ge=0, le=_MOST)]


class Settings(BaseSettings):
    """Embedded by default (SQLite, file-system broker, a folder); production differs in these values alone."""

    model_config = SettingsConfigDict(
        env_prefix="LIMBECK_",
        env_ignore_empty=True,  # a line of a template, or of a compose file, whose value nobody gave
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    environment: Literal["embedded", "production"] = "embedded"
    data_dir: Path = Path(".limbeck")
    """Everything embedded lies below: database, broker, storage, scratch, logs."""
    database_url: str = ""
    """SQLAlchemy URL; default: ``sqlite:///{data_dir}/limbeck.db``. PostgreSQL: ``postgresql+psycopg://…``."""
    broker_url: str = ""
    """Celery broker; default: the file-system transport below ``data_dir``. Redis: ``redis://…``."""
    storage_url: str = ""
    """``file:///folder`` or ``s3://bucket/prefix``; default: ``{data_dir}/storage``."""
    s3_endpoint: str | None = None
    """For S3-compatible stores other than AWS."""
    s3_public_endpoint: str | None = None
    """By which callers reach the bucket where ``s3_endpoint`` is a name that only the servers know: signed URLs are
    made for it. Default: ``s3_endpoint``."""
    s3_redirect: bool = True
    """Whether a model's file is answered with a redirect to a signed URL of the bucket; else the API sends it."""
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    scratch_dir: Path | None = None
    """Where attempts work; local to the machine. Default: ``{data_dir}/scratch``."""

    slots: int = Field(default=1, ge=1, le=64)
    """Jobs that one worker runs at a time; with GPUs, one per GPU."""
    lease_seconds: Seconds = 60
    heartbeat_seconds: Seconds = 15
    grace_seconds: Seconds = 30
    """How long an attempt that is told to stop may take to write its checkpoint; and, when its worker shuts down, to
    bring that to a storage that is away."""
    stall_seconds: Seconds = 1800
    """A training process that has not got on for so long is ended, and the job tried again."""
    ranks_host: str | None = None
    """The IPv4 address of this machine, or a name of it, by which the other hosts of a training reach it; default:
    127.0.0.1 where the database is on this machine, else none, and there is no training over several hosts."""
    hosts_wait_seconds: Seconds = 60
    """How long a training over several hosts waits for idle workers; it then goes on with those that came."""
    checkpoint_seconds: Seconds = 60
    """Between two checkpoints of a running attempt."""
    latency_seconds: Seconds = 1
    """About as long each model of a job, in each form, is timed at each batch size."""
    reconcile_min_seconds: Seconds = 30
    reconcile_max_seconds: Seconds = 600
    max_attempts: int = Field(default=3, ge=1, le=100)
    retry_seconds: SecondsOrZero = 10
    """After a fault that may pass (memory, disk, a crash) the job waits so long, and three times as long each time."""

    max_upload_bytes: int = Field(default=2 * 1024**3, gt=0)
    max_unpacked_bytes: int = Field(default=4 * 1024**3, gt=0)
    max_log_bytes: int = Field(default=4 * 1024**2, gt=0)
    """Per job; what an attempt prints beyond it is dropped, and that is said."""
    max_queued_jobs: int = Field(default=10_000, gt=0)
    predict_memory_bytes: int = Field(default=1024**3, gt=0)
    """Students kept loaded for ``/predict`` take at most about this much; the least recently used goes first."""
    predict_threads: int | None = Field(default=None, ge=1, le=256)
    """Windows of texts that an API process answers at the same time; default: one for each core."""
    predict_call_threads: int | None = Field(default=None, ge=1, le=256)
    """Threads that one window is computed with; default: 1 in int8, as many as there are cores in the other forms."""
    predict_providers: Annotated[tuple[Literal["cuda", "openvino", "cpu"], ...], NoDecode] = ()
    """What computes for ``/predict``, the preferred one first, with commas; default: whatever of it is installed."""
    predict_queue_texts: int = Field(default=4096, gt=0)
    """Texts that may wait for ``/predict`` in an API process, to be read or answered; beyond that the answer is 429."""
    predict_seconds: Seconds = 30
    """In which ``/predict`` answers: loading, reading, waiting and computing; behind that the answer is 503."""
    predict_cache_bytes: int = Field(default=8 * 1024**3, gt=0)
    """Students' files that ``/predict`` fetched from a bucket to ``scratch_dir``; the oldest goes first."""
    serve_folder: Path | None = None
    """``limbeck serve`` answers with the students in this folder, and asks no database; ``--local`` sets it."""
    serve_drain_seconds: SecondsOrZero = 5
    """Told to end (SIGTERM), ``limbeck serve`` says for so long that it is not ready, and answers all the same."""
    download_cache_bytes: int = Field(default=8 * 1024**3, gt=0)
    """Packed ``.tar.gz`` downloads kept in ``scratch_dir`` take at most about this much; the oldest goes first."""
    teacher_cache_gb: float = Field(default=8, ge=0, le=_MOST)
    """Teachers' answers that jobs share take at most so much in ``scratch_dir``, where the least recently used goes
    first, and after ``limbeck gc`` in the storage. 0: each job asks its teacher anew."""
    teacher_share_seconds: SecondsOrZero = 60
    """A teacher's pass over the training texts that takes longer than this is offered to idle workers, in parts of a
    third of it. 0: none is; nor where ``teacher_cache_gb`` is 0."""
    keep_jobs_days: float | None = Field(default=None, gt=0, le=_MOST_DAYS)
    """``limbeck gc`` removes ended jobs, and their artifacts, that are older."""
    max_storage_gb: float | None = Field(default=None, gt=0, le=_MOST)
    """``limbeck gc`` removes the oldest ended jobs until the storage is below."""
    hub_offline: bool = False
    """Never ask the hub; use what its local cache has."""
    log_format: Literal["text", "json"] = "text"

    @field_validator("predict_providers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_serializer("predict_providers", when_used="json")
    def _joined(self, value: tuple[str, ...]) -> str:
        """As the environment has it, so that dumped settings can be those of another process."""
        return ",".join(value)

    @model_validator(mode="before")
    @classmethod
    def _fill_urls(cls, values: dict[str, object]) -> dict[str, object]:
        folder = _place(values.get("data_dir") or ".limbeck")
        filled = dict(values, data_dir=folder)
        if values.get("environment") == "production":
            missing = [name for name in ("database_url", "broker_url", "storage_url") if not values.get(name)]
            if missing:
                names = ", ".join("LIMBECK_" + name.upper() for name in missing)
                raise ValueError(f"in production these have no default and have to be set: {names}")
        filled["database_url"] = values.get("database_url") or f"sqlite:///{folder / 'limbeck.db'}"
        filled["broker_url"] = values.get("broker_url") or f"limbeck-filesystem://{folder / 'broker'}"
        filled["storage_url"] = values.get("storage_url") or (folder / "storage").as_uri()
        # A training process works in a folder of its own, where a relative path would mean another one.
        filled["scratch_dir"] = _place(values.get("scratch_dir") or folder / "scratch")
        return filled

    @model_validator(mode="after")
    def _beats_fit_the_lease(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                "LIMBECK_HEARTBEAT_SECONDS has to be at most half of LIMBECK_LEASE_SECONDS, "
                "so that one beat may be missed"
            )
        return self

    @model_validator(mode="after")
    def _the_bucket_can_be_asked(self) -> Settings:
        if (self.s3_access_key_id is None) is not (self.s3_secret_access_key is None):
            raise ValueError(
                "LIMBECK_S3_ACCESS_KEY_ID and LIMBECK_S3_SECRET_ACCESS_KEY are given together or not at all"
            )
        for name in ("s3_endpoint", "s3_public_endpoint"):
            address = getattr(self, name)
            if address is not None and not _is_web_address(address):
                variable = "LIMBECK_" + name.upper()
                raise ValueError(f"{variable} is no URL; allowed: https://host:port or http://host:port")
        return self


def _place(folder: object) -> Path:
    """A folder, whole; the home's ``~``, which no shell has seen in an environment file, is the home."""
    return Path(os.path.expanduser(str(folder))).absolute()


def _is_web_address(text: str) -> bool:
    """The bucket's client ends its whole thread where it is given no host; and of anything behind it, or of a password
    before it, it would make a part of the URLs that callers are given."""
    try:
        url = urlsplit(text)
        host = bool(url.hostname) and url.port != 0 and not re.search(r"[\s@?#]", text)
        return url.scheme in ("http", "https") and host
    except ValueError:  # a port that is none
        return False


def refuse(why: str) -> int:
    """Say on one line why a program does not start; gives its exit code."""
    sys.stderr.write(f"limbeck: {why}\n")
    return _USAGE_ERROR


def complaint(error: ValidationError) -> str:
    """One line for whoever set what :class:`Settings` refuses: each variable, and what it was found to be."""
    return f"the settings cannot be used: {'; '.join(map(_told, error.errors()))}"


def _told(finding: Any) -> str:
    """What our own validators find names its variables itself, and may be of a URL with a password in it."""
    message = str(finding["msg"]).removeprefix("Value error, ")
    if not finding["loc"]:
        return message
    return f"LIMBECK_{str(finding['loc'][0]).upper()}: {message}; found {str(finding['input'])[:80]!r}"


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """A line for each ``LIMBECK_…`` variable that nothing reads, with the one that may be meant."""
    known = [f"LIMBECK_{name.upper()}" for name in Settings.model_fields]
    strangers = sorted(name for name in environment if name.startswith("LIMBECK_") and name not in known + _OTHERS)
    return [f"{name} is no setting of the server, and changes nothing{_meant(name, known)}" for name in strangers]


def _meant(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; is {near[0]} meant?" if near else ""
