"""Exceptions become answers here, and nowhere else. No answer shows a stack trace."""

import json
import logging
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.schemas import PRINTABLE, SHA256
from shared.bounds import COLLECTION_NAME, cut, shown
from shared.database.sqlstates import Meaning, first_line, trouble_of
from shared.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    QueueFull,
    SluiceError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from shared.kinds.registry import KINDS
from shared.prefixes import ID_PREFIX

# RFC 9457 problems: the one shape of every error that the API answers with.
#
# Nothing here knows of exceptions; `api/http/errors.py` translates those.

MEDIA_TYPE = "application/problem+json"


class BadCursor(SluiceError):
    """The cursor is not one of this list; pass a `next_cursor` unchanged, or none."""


def problem(
    status: int,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem response; `errors` are entries of `field` and `message`."""
    body = problem_body(status, detail, errors)
    return Response(
        json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def problem_body(
    status: int, detail: str, errors: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = [dict(entry) for entry in errors]
    return body


# Errors as each surface tells them: problems, but `{"error": "..."}` on Hugging Face's paths.
#
# That API answers 400 to whatever is wrong with a request's content, where the native one
# says 422.

HUGGING_FACE = ("/models/", "/pipeline/")
"""How the paths begin that programs know from the inference API."""
PREFIXES = {401: "Invalid credentials in Authorization header. "}
"""Words that clients of that API look for."""


def is_hugging_face(path: str) -> bool:
    return path.startswith(HUGGING_FACE)


def asks_for_key(path: str) -> bool:
    """Whether a path is served to those alone who have one of the keys, where keys are set."""
    return path.startswith("/v1/") or is_hugging_face(path)


def refusal(
    path: str,
    status: int,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in the dialect of a path; `errors` are for the native one alone."""
    if not is_hugging_face(path):
        return problem(status, detail, errors=errors, headers=headers)
    return hugging_face_error(400 if status == 422 else status, detail, headers=headers)


def hugging_face_error(
    status: int, message: str, *, headers: Mapping[str, str] | None = None, **fields: float
) -> Response:
    """`fields` are what else the body has, as `estimated_time`."""
    body = {"error": PREFIXES.get(status, "") + message, **fields}
    return Response(
        json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route in this dialect, for its entry in /docs."""
    return {
        status: {
            "description": ERRORS[status],
            "content": {"application/json": {"schema": ERROR_SCHEMA}},
        }
        for status in statuses
    }


ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "estimated_time": {"type": "number"}},
}
ERRORS = {
    400: "The inputs or parameters are wrong, or are not of the model's task",
    401: "No valid API key",
    403: "Sent by a web page of another origin",
    404: "No such model",
    408: "The body did not come in time",
    409: "The Idempotency-Key was used for another request",
    413: "Too large",
    421: "Not a name of this server",
    429: "The queue is full; see Retry-After",
    431: "The head of the request is too large",
    500: "The job failed",
    503: "The model is loading (`estimated_time`), or a server does not answer",
    504: "The job runs on; its id is in the header x-sluice-job-id",
}


# What pydantic found wrong with a request, in words that name the field and the remedy.

SHOWN = 3
ERRORS_LIMIT = 100
"""How many entries `errors` has at most; a last one says how many more there were."""
PART_CHARS, FIELD_CHARS, MESSAGE_CHARS = 64, 200, 500
# What pydantic says of these does not tell the user what to do.
REMEDIES = {
    "timezone_aware": "give a time zone, as in 2026-11-24T12:00:00Z",
    "extra_forbidden": "there is no such field; check its name",
    "missing": "is required",
    "union_tag_not_found": "is required",
}
PATTERNS = {
    COLLECTION_NAME: "use 3 to 63 letters (a-z), digits, '.', '_' and '-', a letter or digit first "
    "and last",
    SHA256: "give a SHA-256 as 64 hexadecimal digits",
    ID_PREFIX: "give the first 4 to 32 hexadecimal digits of an id, with or without its hyphens",
    PRINTABLE: "use printable ASCII characters without spaces",
}
PLACES = {"body", "query", "path", "header"}
# Members of unions show in pydantic's places, but not in the document that the user sent.
QUOTED = re.compile(r"'(\w+)'")
KIND_TAGS = set(KINDS)
ITEM_TAGS = {*KINDS, "file", "text"}


def invalid(request: Request, error: RequestValidationError) -> Response:
    """422 with entries for the first fields; 415 where the whole body is of another type."""
    errors = error.errors()
    if any(tuple(entry["loc"]) in {("body",), ("body", "file")} for entry in errors[:ERRORS_LIMIT]):
        other = _other_content_type(request)
        if other is not None:
            return other
    entries = [{"field": _field(e), "message": _message(e)} for e in errors[:ERRORS_LIMIT]]
    lines = [f"{entry['field']}: {entry['message']}" for entry in entries[:SHOWN]]
    more = f"; and {len(errors) - SHOWN:,} more" if len(errors) > SHOWN else ""
    if len(errors) > ERRORS_LIMIT:
        rest = f"and {len(errors) - ERRORS_LIMIT:,} more errors, which are not listed"
        entries.append({"field": "body", "message": rest})
    return refusal(request.url.path, 422, "; ".join(lines) + more, errors=entries)


def _other_content_type(request: Request) -> Response | None:
    """Of a body of another type, validation would only say that it is no object."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    wants_file = request.url.path == "/v1/files"
    expected = "multipart/form-data" if wants_file else "application/json"
    is_json = content_type == "application/json" or content_type.endswith("+json")
    if (content_type == expected) if wants_file else is_json:
        return None
    if request.headers.get("content-length", "0") == "0" and not content_type:
        return None
    detail = f"Send this body with Content-Type: {expected}; it came with {content_type or 'none'}."
    return refusal(request.url.path, 415, detail, headers={"Accept": expected})


def _field(entry: Mapping[str, Any]) -> str:
    parts: list[str] = []
    loc: Sequence[str | int] = entry["loc"]
    if entry["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        loc = [*loc, entry["ctx"]["discriminator"].strip("'")]
    for n, part in enumerate(loc):
        if n == 0 and part in PLACES:
            continue
        if (n == 1 and part in KIND_TAGS) or (isinstance(loc[n - 1], int) and part in ITEM_TAGS):
            continue
        parts.append(cut(str(part), PART_CHARS))
    return cut(".".join(parts), FIELD_CHARS) or "body"


def _message(entry: Mapping[str, Any]) -> str:
    context = entry.get("ctx", {})
    if entry["type"] == "union_tag_invalid":
        return (
            f"{shown(context['tag'])} is none of "
            f"{', '.join(QUOTED.findall(context['expected_tags']))}"
        )
    if entry["type"] == "string_pattern_mismatch" and context["pattern"] in PATTERNS:
        return PATTERNS[context["pattern"]]
    text = str(REMEDIES.get(entry["type"], entry["msg"]))
    return cut(text.removeprefix("Value error, "), MESSAGE_CHARS)


log = logging.getLogger(__name__)

STATUS: dict[type[SluiceError], int] = {
    NotFound: 404,
    Conflict: 409,
    InvalidInput: 422,
    TooLarge: 413,
    QueueFull: 429,
    Unauthorized: 401,
    Unavailable: 503,
    BadCursor: 400,
}
NOT_FOUND = "There is nothing at {path}. The paths are listed at /docs."


def install(app: FastAPI) -> None:
    app.add_exception_handler(SluiceError, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(Exception, _unexpected)


def _domain(request: Request, error: Exception) -> Response:
    assert isinstance(error, SluiceError)
    status = next((code for type_, code in STATUS.items() if isinstance(error, type_)), 500)
    headers = {}
    if isinstance(error, QueueFull | Unavailable) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return refusal(request.url.path, status, cut(error.message), headers=headers)


def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid(request, error)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404:
        detail = NOT_FOUND.format(path=cut(request.url.path, 200))
    elif error.status_code == 405:
        detail = f"{request.method} is not a method of {request.url.path}."
    return refusal(request.url.path, error.status_code, cut(detail), headers=error.headers)


def _database(request: Request, error: Exception) -> Response:
    """What the error means is told by its SQLSTATE; what has no other meaning is our fault."""
    trouble = trouble_of(error)
    status = _STATUS_OF[trouble.meaning] if trouble else 500
    if trouble is None or status == 500:
        if isinstance(error, DBAPIError):
            _log_database_error(request, error)
        return _unexpected(request, error)
    # Without the statement and its parameters, which hold what users sent.
    words = first_line(error) if status == 503 else type(error).__name__
    log.warning("database %s (SQLSTATE %s): %s", trouble.meaning.value, trouble.sqlstate, words)
    if status != 503 or trouble.meaning is Meaning.SCHEMA:
        return refusal(request.url.path, status, trouble.message)
    detail = f"{trouble.message} Try again shortly."
    return refusal(request.url.path, status, detail, headers={"Retry-After": "1"})


_STATUS_OF = {
    Meaning.AWAY: 503,
    Meaning.BUSY: 503,
    Meaning.VALUE: 422,
    Meaning.CONFLICT: 409,
    Meaning.SCHEMA: 503,
    Meaning.FAULT: 500,
}


def _log_database_error(request: Request, error: DBAPIError) -> None:
    """Where it came from and its code; what PostgreSQL says of it may quote what users sent."""
    log.error(
        "database error in %s %s: %s (SQLSTATE %s)\n%s",
        request.method,
        cut(request.url.path, 200),
        type(error.orig).__name__,
        getattr(error.orig, "sqlstate", None),
        "".join(traceback.format_tb(error.__traceback__)),
    )


def _unexpected(request: Request, _error: Exception) -> Response:
    return refusal(request.url.path, 500, "The API failed; its log tells why. Please report this.")
