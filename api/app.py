"""The HTTP application: a factory, so that importing this module does nothing."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pkgutil import iter_modules

import anyio.to_thread
from fastapi import APIRouter, FastAPI
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
    for router in (*_routers(), openapi.router):
        app.include_router(router)
    app.mount(openapi.ASSETS, openapi.swagger_files(), name="docs-assets")
    openapi.install(app, has_keys=bool(settings.api_keys))
    # The last added comes first: who it is comes before how much it sends.
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
    """The `router` of each module of `api/routes/`, and that of each dialect."""
    # Routes are tried in this order at each request.
    names = sorted((module.name for module in iter_modules(routes.__path__)), key=_rank)
    modules = [f"{routes.__name__}.{name}:router" for name in names]
    for name in (*modules, *(dialect.router for dialect in dialects())):
        router = load(name)
        assert isinstance(router, APIRouter), name
        yield router


def _rank(module: str) -> int:
    """Those that are asked most stand first."""
    return BUSIEST.index(module) if module in BUSIEST else len(BUSIEST)
