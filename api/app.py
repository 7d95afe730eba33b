"""The HTTP application: a factory, so that importing this module does nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import openapi
from api.compat import huggingface
from api.deps import open_parts
from api.health import Metrics, Readiness
from api.http import errors
from api.http.hosts import Hosts
from api.http.limits import BodyLimit, Keys
from api.openapi import METHODS, Methods
from api.routes import (
    collections,
    conversations,
    docs,
    documents,
    events,
    files,
    health,
    ids,
    jobs,
    models,
    queues,
)
from shared.config import Settings

SHOWN_TO_PAGES = [
    "ETag", "Idempotent-Replayed", "Location", "Preference-Applied", "Retry-After",
    "x-sluice-job-id", "x-warning",
]  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api_threads
        async with open_parts(settings) as parts:
            app.state.parts = parts
            app.state.readiness = Readiness(parts)
            app.state.metrics = Metrics(
                worker_heartbeat_s=settings.worker_heartbeat_s, depths=parts.depths
            )
            yield

    app = FastAPI(
        title="Sluice",
        version=openapi.package_version(),
        description=openapi.DESCRIPTION,
        openapi_tags=[{"name": name, "description": text} for name, text in openapi.TAGS.items()],
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    answering = (jobs, events, conversations, collections, documents, files, models, queues, ids)
    for module in (*answering, huggingface, health):
        app.include_router(module.router)
    docs.install(app)
    openapi.install(app, asks_for_keys=bool(settings.api_keys))
    # The last added is the first asked: who it is comes before how much it sends.
    app.add_middleware(Methods)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Keys, settings=settings)
    app.add_middleware(Hosts, settings=settings)
    if settings.api_cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.api_cors_origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=SHOWN_TO_PAGES,
        )
    return app
