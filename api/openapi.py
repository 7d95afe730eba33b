"""The OpenAPI document: what FastAPI knows of the routes, and additions.

Operations are named after their functions (`submit_job`), so that the calls of generated clients
are readable and stable. The answers of the middleware and the server are added to each operation,
and the results of jobs get the shapes of their kinds. Errors are those of the dialect that owns the
path (`api/compat/`). The page `/docs` shows the document with Swagger UI, which the API serves
itself from the package `fastapi-swagger`, without a CDN.
"""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.staticfiles import StaticFiles

from api.compat.dialect import NATIVE, REF, dialect_of, dialects, requires_key
from api.schemas import ProblemView
from shared.kinds.registry import KINDS

DESCRIPTION = """An asynchronous job queue for small-language-model work.

Submit a job, poll it or follow its events. Errors are `application/problem+json` (RFC 9457); only
the paths tagged {tags} answer as the API does that they stand for. A response of 503 with
`Retry-After` may be sent again as it is; so may a submission with an `Idempotency-Key`.
"""
TAGS = {
    "jobs": "Submit, follow, cancel and redrive work of all kinds.",
    "batches": "Files of many requests, of which each line is a job.",
    "schedules": "Jobs that are submitted again and again, as a cron expression says.",
    "conversations": "Stored turns with a model; `chat` and `rag` jobs go on with them.",
    "prompts": "Stored templates with variables, in versions; `rag` and `chat` jobs name them.",
    "collections": "Named sets of documents, each with one embedding model.",
    "documents": "What `ingest` jobs put into collections, and the pieces of its text.",
    "files": "Uploads, for jobs to work on.",
    "models": "The models that can run here.",
    "queues": "Queues and workers: how busy they are; pausing and resuming.",
    "ids": "Ids by their first digits.",
    "health": "Liveness, readiness and metrics; these need no key.",
}
BEARER = {"type": "http", "scheme": "bearer", "description": "One of SLUICE_API_KEYS."}
RESULTS: dict[str, type[BaseModel]] = {
    kind.name: kind.result for kind in KINDS.values() if kind.result is not None
}
"""Kind -> shape of its result; without `hf`, whose results depend on the task."""
EVERYWHERE = (400, 403, 421, 431, 503)
WITH_BODY = (408, 413, 415, 422)


def documented(
    views: Mapping[int, type[BaseModel]], *problems: int
) -> dict[int | str, dict[str, Any]]:
    """The answers of a native route, for its entry in the document."""
    responses: dict[int | str, dict[str, Any]] = {code: {"model": v} for code, v in views.items()}
    return responses | NATIVE.documented(*problems)


def description() -> str:
    tags = dict.fromkeys(f"`{dialect.tag}`" for dialect in dialects())
    return DESCRIPTION.format(tags=", ".join(tags))


def tags() -> list[dict[str, str]]:
    described = TAGS | {dialect.tag: f"{dialect.summary}." for dialect in dialects()}
    return [{"name": name, "description": text} for name, text in described.items()]


def package_version() -> str:
    try:
        return version("sluice")
    except PackageNotFoundError:  # it runs from its source files and is not installed
        return "0"


def operation_id(route: APIRoute) -> str:
    return route.name


def install(app: FastAPI, *, has_keys: bool) -> None:
    """Make `app.openapi()` return the whole document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(generate(), has_keys=has_keys)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _complete(document: dict[str, Any], *, has_keys: bool) -> dict[str, Any]:
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
    if has_keys:
        document["components"]["securitySchemes"] = {"key": BEARER}
        document["security"] = [{"key": []}]
        for path, operations in document["paths"].items():
            if not requires_key(path):
                for operation in operations.values():
                    operation["security"] = []
    return _with_names(document)


def _results() -> dict[str, Any]:
    """The components for the result of each kind, and `JobResult`, which is any of these."""
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
    """Add the answers of the middleware and the server, in the dialect of the path."""
    dialect, responses = dialect_of(path), operation["responses"]
    statuses = {*EVERYWHERE}
    if "requestBody" in operation:
        statuses |= {*WITH_BODY}
    if responses.pop("422", None) is not None:
        statuses.add(422)
    if requires_key(path):
        statuses.add(401)
    if dialect.takes_files:
        statuses.discard(415)
    statuses = {dialect.status(status) for status in statuses}
    for status, response in dialect.documented(*statuses).items():
        responses.setdefault(str(status), response)
    operation["responses"] = dict(sorted(responses.items()))


def _with_names(document: dict[str, Any]) -> dict[str, Any]:
    """Rename components: `Body_upload_file` to `UploadFileForm`, `Page_JobView_` to `JobPage`."""
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


# The page /docs

ASSETS = "/docs/assets"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    root = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Sluice API",
        swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{root}{ASSETS}/favicon-32x32.png",
        # Otherwise the page loads the badge of a public validator from the internet.
        swagger_ui_parameters={"validatorUrl": None, "docExpansion": "list"},
    )


def swagger_files() -> StaticFiles:
    spec = find_spec("fastapi_swagger")
    assert spec is not None, "the package fastapi-swagger is missing (extra `api`)"
    assert spec.origin is not None
    return StaticFiles(directory=Path(spec.origin).parent / "resources")
