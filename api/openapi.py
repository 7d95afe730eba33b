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

from api.answers import documented
from api.compat import dialect
from api.schemas import ProblemView
from shared.generation import ChatResult
from shared.payloads import (
    EmbedResult,
    EraseResult,
    IngestResult,
    Kind,
    ModelResult,
    RagResult,
    SearchResult,
)

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
RESULTS: dict[Kind, type[BaseModel]] = {
    Kind.INGEST: IngestResult,
    Kind.EMBED: EmbedResult,
    Kind.SEARCH: SearchResult,
    Kind.RAG: RagResult,
    Kind.CHAT: ChatResult,
    Kind.ERASE: EraseResult,
    Kind.MODEL: ModelResult,
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
            if not dialect.asks_for_key(path):
                for operation in operations.values():
                    operation["security"] = []
    return _with_names(document)


def _results() -> dict[str, Any]:
    """Components: the result of each kind, and `JobResult`, which is any of them."""
    _, found = models_json_schema(
        [(model, "serialization") for model in RESULTS.values()], ref_template=REF + "{model}"
    )
    schemas: dict[str, Any] = found["$defs"]
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
    if dialect.asks_for_key(path):
        statuses.add(401)
    if dialect.is_hugging_face(path):
        # That API says 400 where this one says 422, and takes bodies of all types.
        responses.pop("422", None)
        added = dialect.documented(*(statuses - {415, 422}))
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
