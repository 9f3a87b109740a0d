"""What a route needs, made once per application and handed to routes as parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
from anyio import CapacityLimiter
from fastapi import Depends, Request

from api.answering import Answering
from api.downloads import Downloads
from api.inference import Students
from api.places import Places
from api.streams import Streams
from limbeck.errors import LimbeckError
from models.db import Database
from models.settings import Settings
from models.storage import Storage
from worker.queue import Bell

log = structlog.get_logger("limbeck.api")

#: Uploads that are unpacked, read and stored at one time; each may need a core and its data in memory.
_INTAKES = 2


@dataclass(frozen=True, slots=True)
class Services:
    """The process's open things.

    Routes open a session themselves (``with services.database.session() as session:``). A session that a dependency
    yields would cost two more trips through the thread pool, and what has to come after the commit, such as the bell,
    then stands visibly behind the block.
    """

    settings: Settings
    database: Database
    storage: Storage
    bell: Bell
    streams: Streams
    answering: Answering
    downloads: Downloads
    places: Places
    intake: CapacityLimiter

    @property
    def students(self) -> Students:
        return self.answering.students

    @property
    def scratch(self) -> Path:
        assert self.settings.scratch_dir is not None  # Settings fills it in
        return self.settings.scratch_dir

    def discard(self, keys: Iterable[str]) -> None:
        """Delete from the storage what no row names any more. What is left of it, while the storage is away, goes with
        `limbeck gc`: for callers it is gone."""
        try:
            self.storage.delete(keys)
        except (LimbeckError, OSError) as error:
            log.warning("the storage keeps what was deleted until `limbeck gc`", error=str(error))

    def forget_model(self, model_id: str) -> None:
        """Drop what this process holds of a model that was deleted."""
        self.students.forget(model_id)
        self.downloads.forget(model_id)


def intake_limiter() -> CapacityLimiter:
    return CapacityLimiter(_INTAKES)


async def _services(request: Request) -> Services:  # async: a plain function would be sent to the thread pool
    services: Services = request.app.state.services
    return services


House = Annotated[Services, Depends(_services)]
