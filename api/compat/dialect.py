"""What a dialect is: an API that others defined and that this server speaks, in one record.

`DIALECTS` lists them. How to add one: CONTRIBUTING.md. A dialect owns the paths below its
prefixes: whatever goes wrong there is written as its programs expect it, also what is refused
before a route is found (no key, too large a body, no such path, a method that is none).
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
    """What went wrong with a request, before a dialect writes it."""

    status: int
    detail: str
    code: str = ""
    """That of the error (`shared/errors.py`); empty for what only HTTP knows, as 405."""
    errors: Sequence[Mapping[str, str]] = ()
    """Entries of `field` and `message`, where several fields are wrong."""
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else a dialect has in such a body, as `estimated_time`."""


class ProblemError(Exception):
    """A problem, raised where it is met; it is written in the dialect of the request's path."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """An API that is spoken on paths of its own."""

    name: str
    summary: str
    tag: str
    """Of its operations in the OpenAPI document; `summary` describes it there."""
    prefixes: tuple[str, ...]
    """How its paths begin; each ends with a slash."""
    routers: tuple[str, ...]
    """The `APIRouter`s with its routes, in the order in which they are tried, as `module:name`; one
    may stand in the dialect's own module."""
    error: Callable[[Problem], Mapping[str, Any]]
    """The JSON body of an error."""
    error_schema: Mapping[str, Any]
    """JSON Schema of these bodies."""
    route_prefix: str = ""
    """What comes before the paths of all its routes."""
    media_type: str = "application/json"
    statuses: Mapping[int, int] = field(default_factory=dict)
    """Where this API has another status than ours for the same thing."""
    descriptions: Mapping[int, str] = field(default_factory=dict)
    """What a status means here, for the OpenAPI document; the native words by default."""
    takes_files: bool = False
    """Bodies may be files, as they are or in base64: of any content type, and as large as files."""
    takes_any_type: bool = False
    """Bodies are JSON whatever their content type says."""
    upload_paths: tuple[str, ...] = ()
    """Where forms with files are sent (`multipart/form-data`): bodies may be as large as files."""

    def owns(self, path: str) -> bool:
        return path.startswith(self.prefixes) or f"{path}/" in self.prefixes

    def status(self, status: int) -> int:
        return self.statuses.get(status, status)

    def include_routes(self, app: FastAPI) -> None:
        for name in self.routers:
            app.include_router(load(name), prefix=self.route_prefix, tags=[self.tag])

    def answer(self, problem: Problem) -> Response:
        """The error as this dialect writes it."""
        body = json.dumps(self.error(problem), ensure_ascii=False)
        return Response(
            body.encode("utf-8", "backslashreplace"),
            status_code=self.status(problem.status),
            headers=dict(problem.headers),
            media_type=self.media_type,
        )

    def documented(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """Errors of a route in this dialect, for its entry in /docs."""
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
"""RFC 9457: how errors are written wherever no other dialect owns the path."""


# All dialects, a line each. Whatever has to do with every one of them goes through here.
#
# Their modules have routes, which are built on modules that import this one; so they are
# named, and loaded at the first call.

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
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def dialect_of(path: str) -> Dialect:
    """The dialect that owns a path: the native one where it is nobody's."""
    return next((dialect for dialect in dialects() if dialect.owns(path)), NATIVE)


def takes_uploads(path: str) -> bool:
    """Whether forms with files are sent to a path."""
    return path.rstrip("/") in (NATIVE if NATIVE.owns(path) else dialect_of(path)).upload_paths


def requires_key(path: str) -> bool:
    """Whether a path is served to those alone who have one of the keys, where keys are set."""
    return NATIVE.owns(path) or dialect_of(path) is not NATIVE
