"""The HTTP application: a factory, so that importing this module does nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pkgutil import iter_modules

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import openapi, routes
from api.compat.dialect import dialects, load
from api.deps import open_parts
from api.http import errors
from api.http.middleware import METHODS, BodyLimit, Hosts, Keys, Methods
from shared.config import Settings

SHOWN_TO_PAGES = [
    "ETag", "Idempotent-Replayed", "Location", "Preference-Applied", "Retry-After",
    "x-sluice-job-id", "x-warning",
]  # fmt: skip

BUSIEST = ("jobs", "events")


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api_threads
        async with open_parts(settings) as parts:
            app.state.parts = parts
            yield

    app = FastAPI(
        title="Sluice",
        version=openapi.package_version(),
        description=openapi.description(),
        openapi_tags=openapi.tags(),
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    _include_routes(app)
    app.mount(openapi.ASSETS, openapi.swagger_files(), name="docs-assets")
    openapi.install(app, has_keys=bool(settings.api_keys))
    # The middleware that is added last runs first: keys are checked before the size of a body.
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


def _include_routes(app: FastAPI) -> None:
    """Add the `router` of each module of `api/routes/`, those of each dialect, and /docs."""
    # The order matters: routes are matched one after the other for each request.
    for name in sorted((module.name for module in iter_modules(routes.__path__)), key=_rank):
        app.include_router(load(f"{routes.__name__}.{name}:router"))
    for dialect in dialects():
        dialect.include_routes(app)
    app.include_router(openapi.router)


def _rank(module: str) -> int:
    """Modules with the most frequent requests come first."""
    return BUSIEST.index(module) if module in BUSIEST else len(BUSIEST)
