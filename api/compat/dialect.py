"""Dialects: APIs that others defined and that this server speaks, a record for each.

`DIALECTS` lists them. How to add one: CONTRIBUTING.md. A dialect owns the paths below its prefixes:
all errors there have the form that its clients expect, also those before a route is found (no key,
too large a body, unknown path, wrong method).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from importlib import import_module
from typing import Any

from fastapi import FastAPI, Response

from api.schemas import ProblemView

REF = "#/components/schemas/"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An error of a request, in no particular dialect yet."""

    status: int
    detail: str
    code: str = ""
    """The code of the error (`shared/errors.py`); empty for errors of HTTP itself, such as 405."""
    errors: Sequence[Mapping[str, str]] = ()
    """Entries of `field` and `message` for each wrong field."""
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Additional values for the body in a dialect, such as `estimated_time`."""


class ProblemError(Exception):
    """Raises a `Problem`, which is answered in the dialect of the request's path."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """An API on paths of its own."""

    name: str
    summary: str
    tag: str
    """The tag of its operations in the OpenAPI document, with `summary` as its description."""
    prefixes: tuple[str, ...]
    """The prefixes of its paths; each ends with a slash."""
    routers: tuple[str, ...]
    """The `APIRouter`s with its routes, as `module:name`, in the order in which they are
    matched."""
    error: Callable[[Problem], Mapping[str, Any]]
    """The JSON body of an error."""
    error_schema: Mapping[str, Any]
    """The JSON Schema of these bodies."""
    route_prefix: str = ""
    """The common prefix of the paths of its routes."""
    media_type: str = "application/json"
    statuses: Mapping[int, int] = field(default_factory=dict)
    """Our status -> the status that this API has for the same error, if it is another one."""
    descriptions: Mapping[int, str] = field(default_factory=dict)
    """Status -> its description in the OpenAPI document, if it is not the native one."""
    takes_files: bool = False
    """Bodies may be files, raw or in base64: of any content type, and as large as files."""
    takes_any_type: bool = False
    """Bodies are read as JSON whatever their content type is."""
    upload_paths: tuple[str, ...] = ()
    """Paths that take forms with files (`multipart/form-data`), as large as files may be."""

    def owns(self, path: str) -> bool:
        return path.startswith(self.prefixes) or f"{path}/" in self.prefixes

    def status(self, status: int) -> int:
        return self.statuses.get(status, status)

    def include_routes(self, app: FastAPI) -> None:
        for name in self.routers:
            app.include_router(load(name), prefix=self.route_prefix, tags=[self.tag])

    def answer(self, problem: Problem) -> Response:
        """The answer to an error in this dialect."""
        body = json.dumps(self.error(problem), ensure_ascii=False)
        return Response(
            body.encode("utf-8", "backslashreplace"),
            status_code=self.status(problem.status),
            headers=dict(problem.headers),
            media_type=self.media_type,
        )

    def documented(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """The entries of a route's errors in the OpenAPI document."""
        return {
            status: {
                "description": self.descriptions.get(status) or DESCRIPTIONS[status],
                "content": {self.media_type: {"schema": dict(self.error_schema)}},
            }
            for status in statuses
        }


def _problem_json(problem: Problem) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.errors:
        body["errors"] = [dict(entry) for entry in problem.errors]
    return body


DESCRIPTIONS = {
    400: "Not HTTP/1.1 or not JSON, or a cursor of another list",
    401: "No valid API key",
    403: "The key may not do this, or a web page of another origin sent it",
    404: "No such thing",
    408: "The body did not come in time",
    409: "Contradicts the present state",
    413: "Too large",
    415: "Another content type is wanted",
    421: "Not a name of this server",
    422: "Not valid; `errors` names the fields",
    429: "The queue is full; see Retry-After",
    431: "The head of the request is too large",
    500: "The API failed",
    503: "A server behind the API does not answer, or there is too much to do; see Retry-After",
    504: "No answer in time",
}

NATIVE = Dialect(
    name="sluice",
    summary="Sluice's own API",
    tag="",
    prefixes=("/v1/",),
    routers=(),
    error=_problem_json,
    error_schema={"$ref": f"{REF}{ProblemView.__name__}"},
    media_type="application/problem+json",
    upload_paths=("/v1/files",),
)
"""Sluice's own API, whose errors are those of RFC 9457; also for paths that no dialect owns."""


# All dialects. Modules of routes import this module, so dialects are named here and imported at the
# first call.

DIALECTS = (
    "api.compat.huggingface:HUGGING_FACE",
    "api.compat.mcp.dialect:MCP",
    "api.compat.ollama.dialect:OLLAMA_API",
    "api.compat.openai.dialect:OPENAI",
    "api.compat.tei:TEI",
)


@cache
def dialects() -> tuple[Dialect, ...]:
    loaded = tuple(load(name) for name in DIALECTS)
    assert all(isinstance(dialect, Dialect) for dialect in loaded), DIALECTS
    return loaded


def load(name: str) -> Any:
    """Import the object `module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def dialect_of(path: str) -> Dialect:
    """The dialect that owns a path; the native one if no other does."""
    return next((dialect for dialect in dialects() if dialect.owns(path)), NATIVE)


def takes_uploads(path: str) -> bool:
    """Whether a path takes forms with files."""
    return path.rstrip("/") in (NATIVE if NATIVE.owns(path) else dialect_of(path)).upload_paths


def requires_key(path: str) -> bool:
    """Whether a path needs an API key, if keys are set."""
    return NATIVE.owns(path) or dialect_of(path) is not NATIVE
