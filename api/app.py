"""The application, put together from settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI

from api import errors, openapi
from api.access import Observed
from api.answering import open_answering
from api.deps import Services, intake_limiter
from api.downloads import Downloads
from api.places import Places
from api.readiness import Readiness, answers, storage_probe
from api.routes import aliases, datasets, events, files, health, jobs, methods, models, open_inference, predict
from api.settling import settles
from api.shelves import DatabaseShelf
from api.streams import Streams
from api.telemetry import Telemetry
from limbeck.errors import Unavailable
from models.db import Database
from models.scratch import sweep
from models.settings import Settings
from models.storage import open_storage
from worker.queue import Bell

#: A request is compared with one route after the other: those that are asked by far the most come first.
_ROUTERS: tuple[APIRouter, ...] = (
    predict.router,
    open_inference.asking,
    jobs.listing,
    *(module.router for module in (jobs, events, datasets, models, aliases, files, open_inference, methods, health)),
)


def create_app(settings: Settings) -> FastAPI:
    """Build the API. The database, the storage and the rest are opened when it starts, and closed when it ends."""
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _services(settings, telemetry) as services:
            app.state.services, app.state.answering = services, services.answering
            app.state.readiness, app.state.telemetry = _readiness(services), telemetry
            yield

    app = FastAPI(
        title="Limbeck",
        summary="Distils BERT-family models into small students.",
        description=openapi.DESCRIPTION,
        version=openapi.installed_version(),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=openapi.TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_middleware(Observed, telemetry=telemetry)
    errors.register(app)
    for router in _ROUTERS:
        app.include_router(router)
    openapi.install(app)

    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, str]:
        return {"name": "limbeck", "version": app.version, "docs": "/docs", "openapi": "/openapi.json"}

    return app


@asynccontextmanager
async def _services(settings: Settings, telemetry: Telemetry) -> AsyncIterator[Services]:
    assert settings.scratch_dir is not None  # Settings fills it in
    async with AsyncExitStack() as stack:
        database = Database(settings)
        stack.callback(database.dispose)
        if settings.environment == "embedded":  # in production a step of the deployment does it
            await asyncio.to_thread(database.migrate)
        await asyncio.to_thread(sweep, settings.scratch_dir)
        storage = open_storage(settings)
        bell = Bell(settings)
        stack.callback(bell.close)
        streams = await stack.enter_async_context(Streams(database).running())
        await stack.enter_async_context(settles(database, settings.reconcile_min_seconds))
        answering = stack.enter_context(open_answering(settings, DatabaseShelf(database), storage))
        telemetry.watch_jobs(database)
        telemetry.watch_streams(lambda: streams.open)
        telemetry.watch_answering(answering)
        yield Services(
            settings=settings,
            database=database,
            storage=storage,
            bell=bell,
            streams=streams,
            answering=answering,
            downloads=Downloads(storage, settings.scratch_dir / "downloads", settings.download_cache_bytes),
            places=Places(),
            intake=intake_limiter(),
        )


def _readiness(services: Services) -> Readiness:
    needed = {"database": answers(services.database.ping), "storage": storage_probe(lambda: services.storage)}

    def broker() -> str:
        if (fault := services.bell.fault) is not None:
            raise Unavailable(f"does not take bells: {fault}")
        return "no bell was refused"

    return Readiness(needed, {"broker": broker})
