"""The application of ``limbeck serve``: the routes that ask students, health, and numbers. No jobs, no broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors, openapi
from api.access import Observed
from api.answering import open_answering
from api.readiness import Readiness, answers, storage_probe
from api.routes import health, open_inference, predict
from api.serve.folder import FolderShelf
from api.shelves import DatabaseShelf, Shelf
from api.telemetry import Telemetry
from models.db import Database
from models.settings import Settings
from models.storage import Storage, open_storage

_DESCRIPTION = """\
Asks students that Limbeck distilled, by id or alias. Errors are `application/problem+json` (RFC 9457): `code` is for
programs, `detail` for people. Every answer carries `X-Request-Id`; send your own to find it in the server's log.
"""


def create_app(settings: Settings) -> FastAPI:
    """Build the service. Database and storage, or the folder, are opened when it starts."""
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            shelf, storage = _shelf(settings, stack)
            answering = stack.enter_context(open_answering(_placed(settings, stack), shelf, storage))
            telemetry.watch_answering(answering)
            app.state.answering, app.state.telemetry = answering, telemetry
            app.state.readiness = Readiness(
                {"students": answers(shelf.ping), "storage": storage_probe(lambda: storage)}, lasting=True
            )
            yield

    app = FastAPI(
        title="Limbeck's students",
        description=_DESCRIPTION,
        version=openapi.installed_version(),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=[tag for tag in openapi.TAGS if tag["name"] in ("models", "open inference", "service")],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(Leaving, service=app)
    app.add_middleware(Observed, telemetry=telemetry)
    errors.register(app)
    for router in (predict.router, open_inference.asking, open_inference.router, health.router):
        app.include_router(router)
    openapi.install(app)

    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, str]:
        return {"name": "limbeck serve", "version": app.version, "docs": "/docs", "openapi": "/openapi.json"}

    return app


class Leaving:
    """ASGI middleware: while the process is going down, every connection is closed behind its next answer.

    A connection that the server just closes may have the next request on its way already, which is then lost.
    """

    def __init__(self, app: ASGIApp, service: FastAPI) -> None:
        self._inner, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._service.state.readiness.draining:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._inner(scope, receive, closing if scope["type"] == "http" else send)


def _placed(settings: Settings, stack: AsyncExitStack) -> Settings:
    """With a folder to work in; who serves a folder of his own finds nothing new beside it."""
    if settings.serve_folder is None:
        return settings
    aside = stack.enter_context(TemporaryDirectory(prefix="limbeck-serve-"))
    return settings.model_copy(update={"scratch_dir": Path(aside)})


def _shelf(settings: Settings, stack: AsyncExitStack) -> tuple[Shelf, Storage]:
    if settings.serve_folder is not None:
        folder = FolderShelf(settings.serve_folder)
        return folder, folder.storage
    database = Database(settings)
    stack.callback(database.dispose)
    return DatabaseShelf(database), open_storage(settings, read_only=True)
