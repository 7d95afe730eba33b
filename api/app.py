"""The HTTP application: a factory, so that importing this module does nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import errors
from api.answers import documented
from api.compat import huggingface
from api.compat.dialect import is_hugging_face
from api.deps import open_parts
from api.hosts import Hosts
from api.limits import BodyLimit, Keys
from api.methods import METHODS, Methods
from api.metrics import Metrics
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
from api.schemas import ProblemView
from shared.config import Settings

DESCRIPTION = """An asynchronous job queue for small-language-model work.

Submit a job, poll it or follow its events. Errors are `application/problem+json` (RFC 9457); only
the paths tagged `compatible` answer as the API does that they stand for.
"""
SHOWN_TO_PAGES = [
    "ETag", "Idempotent-Replayed", "Location", "Preference-Applied", "Retry-After",
    "x-sluice-job-id", "x-warning",
]  # fmt: skip
BEARER = {"type": "http", "scheme": "bearer", "description": "One of SLUICE_API_KEYS."}


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api_threads
        async with open_parts(settings) as parts:
            app.state.parts = parts
            app.state.metrics = Metrics(worker_heartbeat_s=settings.worker_heartbeat_s)
            yield

    app = FastAPI(
        title="Sluice",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    answering = (jobs, events, conversations, collections, documents, files, models, queues, ids)
    for module in (*answering, huggingface, health):
        app.include_router(module.router)
    docs.install(app)
    _complete_openapi(app, asks_for_keys=bool(settings.api_keys))
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


def _complete_openapi(app: FastAPI, *, asks_for_keys: bool) -> None:
    """What FastAPI cannot see: native errors are problems, and keys are checked by middleware."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            schemas = schema["components"]["schemas"]
            schemas[ProblemView.__name__] = ProblemView.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    responses = operation["responses"]
                    if is_hugging_face(path):
                        responses.pop("422", None)
                    elif "422" in responses:
                        responses["422"] = documented({}, 422)[422]
            if asks_for_keys:
                schema["components"]["securitySchemes"] = {"key": BEARER}
                schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it
