"""The HTTP application: a factory, so that importing this module does nothing."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from pkgutil import iter_modules

import anyio.to_thread
from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import openapi, routes
from api.compat import huggingface
from api.deps import open_parts
from api.health import Metrics, Readiness
from api.http import errors
from api.http.limits import BodyLimit, Hosts, Keys
from api.openapi import METHODS, Methods
from api.routes.docs import ASSETS, swagger_files
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
    for router in (*_routers(), huggingface.router):
        app.include_router(router)
    app.mount(ASSETS, swagger_files(), name="docs-assets")
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


def _routers() -> Iterator[APIRouter]:
    """The `router` of each module of `api/routes/`."""
    for each in iter_modules(routes.__path__, f"{routes.__name__}."):
        router = import_module(each.name).router
        assert isinstance(router, APIRouter), each.name
        yield router
