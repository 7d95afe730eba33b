"""The OpenAPI document: what FastAPI sees of the routes, and what it cannot see.

Operations are named by their functions (`submit_job`), so that a generated client's calls read well
and stay what they are. What middleware and the server answer is added to each of them; results
have the shapes that workers give them.
"""

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import errors
from api.http.answers import documented
from api.schemas import ProblemView
from shared.kinds.registry import KINDS

DESCRIPTION = """An asynchronous job queue for small-language-model work.

Submit a job, poll it or follow its events. Errors are `application/problem+json` (RFC 9457); only
the paths tagged `compatible` answer as the API does that they stand for. A response of 503 with
`Retry-After` may be sent again as it is; so may a submission with an `Idempotency-Key`.
"""
TAGS = {
    "jobs": "Submit, follow, cancel and redrive work of all kinds.",
    "conversations": "Stored turns with a model; `chat` and `rag` jobs go on with them.",
    "collections": "Named sets of documents, each with one embedding model.",
    "documents": "What `ingest` jobs put into collections, and the pieces of its text.",
    "files": "Uploads, for jobs to work on.",
    "models": "The models that can run here.",
    "queues": "Queues and workers: how busy they are; pausing and resuming.",
    "ids": "Ids by their first digits.",
    "compatible": "The inference API of Hugging Face, on its own paths.",
    "health": "Liveness, readiness and metrics; these need no key.",
}
BEARER = {"type": "http", "scheme": "bearer", "description": "One of SLUICE_API_KEYS."}
RESULTS: dict[str, type[BaseModel]] = {
    kind.name: kind.result for kind in KINDS.values() if kind.result is not None
}
"""Of all kinds but `hf`, whose results are those of its tasks."""
REF = "#/components/schemas/"
EVERYWHERE = (400, 403, 421, 431, 503)
WITH_BODY = (408, 413, 415, 422)


def package_version() -> str:
    try:
        return version("sluice")
    except PackageNotFoundError:  # run from its files, without being installed
        return "0"


def operation_id(route: APIRoute) -> str:
    return route.name


def install(app: FastAPI, *, asks_for_keys: bool) -> None:
    """Make `app.openapi()` return the whole document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(generate(), asks_for_keys=asks_for_keys)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _complete(document: dict[str, Any], *, asks_for_keys: bool) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    schemas[ProblemView.__name__] = ProblemView.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= _results()
    result = {"anyOf": [{"$ref": f"{REF}JobResult"}, {"type": "null"}]}
    schemas["JobView"]["properties"]["result"] = result
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["summary"] = operation["operationId"].replace("_", " ").capitalize()
            _add_responses(path, operation)
    if asks_for_keys:
        document["components"]["securitySchemes"] = {"key": BEARER}
        document["security"] = [{"key": []}]
        for path, operations in document["paths"].items():
            if not errors.asks_for_key(path):
                for operation in operations.values():
                    operation["security"] = []
    return _with_names(document)


def _results() -> dict[str, Any]:
    """Components: the result of each kind, and `JobResult`, which is any of them."""
    _, definitions = models_json_schema(
        [(model, "serialization") for model in RESULTS.values()], ref_template=REF + "{model}"
    )
    schemas: dict[str, Any] = definitions["$defs"]
    names = [*(model.__name__ for model in RESULTS.values()), "HfResult"]
    schemas["HfResult"] = {
        "title": "HfResult",
        "description": "What the Hugging Face task puts out, in its wire format: any JSON.",
    }
    schemas["JobResult"] = {
        "title": "JobResult",
        "description": "The result of a job, by its kind.",
        "anyOf": [{"$ref": REF + name} for name in names],
    }
    return schemas


def _add_responses(path: str, operation: dict[str, Any]) -> None:
    """What comes from before the routes, in the dialect of the path."""
    responses = operation["responses"]
    statuses = {*EVERYWHERE}
    if "requestBody" in operation:
        statuses |= {*WITH_BODY}
    if errors.asks_for_key(path):
        statuses.add(401)
    if errors.is_hugging_face(path):
        # That API says 400 where this one says 422, and takes bodies of all types.
        responses.pop("422", None)
        added = errors.documented(*(statuses - {415, 422}))
    else:
        if "422" in responses:
            statuses.add(422)
            del responses["422"]
        added = documented({}, *statuses)
    for status, response in added.items():
        responses.setdefault(str(status), response)
    operation["responses"] = dict(sorted(responses.items()))


def _with_names(document: dict[str, Any]) -> dict[str, Any]:
    """`UploadFileForm` for `Body_upload_file`, `JobPage` for `Page_JobView_`."""
    text = json.dumps(document)
    for name, schema in document["components"]["schemas"].items():
        if name.startswith("Body_"):
            new = "".join(map(str.capitalize, name.split("_")[1:])) + "Form"
        elif name.endswith("_"):
            new = schema["title"]
        else:
            continue
        for prefix in ("", REF):
            text = text.replace(json.dumps(prefix + name), json.dumps(prefix + new))
    renamed: dict[str, Any] = json.loads(text)
    return renamed


# HEAD wherever GET is answered, OPTIONS wherever there is something, and a true `Allow` on
# 405.

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def allowed(app: Starlette, path: str, root_path: str) -> str | None:
    """What a path takes, for the header `Allow`; None where there is nothing.

    Several routes may have one path, and a route knows only its own methods.
    """
    # `/v1/jobs/batch` is what it is, and not a job of that id.
    operations = app.openapi()["paths"].get(path) if isinstance(app, FastAPI) else None
    if operations is not None:
        methods = [method for method in METHODS if method.lower() in operations]
    else:
        methods = [
            method
            for method in METHODS
            if any(_takes(route, method, path, root_path) for route in app.routes)
        ]
    if not methods:
        return None
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return ", ".join([*methods, "OPTIONS"])


def _takes(route: BaseRoute, method: str, path: str, root_path: str) -> bool:
    match, _ = route.matches(
        {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": []}
    )
    # A mount takes all methods; those here have files.
    return match is Match.FULL and (method == "GET" or not isinstance(route, Mount))


class Methods:
    """Answers HEAD as GET without its body, and OPTIONS. Pure ASGI, next to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["method"] == "OPTIONS":
            allow = _allowed(scope)
            if allow is not None:
                answer = Response(status_code=204, headers={"Allow": allow})
                return await answer(scope, receive, send)
        elif scope["method"] == "HEAD":
            return await self._head(scope, receive, send)
        return await self._app(scope, receive, _with_allow(scope, send))

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server drops the body; it is ended at its start, for some never end."""
        is_over = False

        async def start_only(message: Message) -> None:
            nonlocal is_over
            if is_over:
                return
            await send(message)
            if message["type"] == "http.response.start":
                is_over = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        # What is left of the request's body is of no interest, and streams end when it is over.
        async def until_over() -> Message:
            return {"type": "http.disconnect"} if is_over else await receive()

        as_get = {**scope, "method": "GET"}
        await self._app(as_get, until_over, _with_allow(as_get, start_only))


def _with_allow(scope: Scope, send: Send) -> Send:
    # Routing changes the scope, so what is needed of it is taken before.
    probe = {name: scope[name] for name in ("app", "path", "root_path")}

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            MutableHeaders(scope=message)["Allow"] = _allowed(probe) or ""
        await send(message)

    return sending


def _allowed(scope: Scope) -> str | None:
    return allowed(scope["app"], scope["path"], scope["root_path"])
