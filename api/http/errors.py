"""The only place where exceptions become HTTP: one table from types of exceptions to problems.

A problem is written in the form of its dialect (`api/compat/`), by default as problem+json. No
answer shows a stack trace.
"""

import logging
import math
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.compat.dialect import Problem, ProblemError, dialect_of, takes_uploads
from api.schemas import ID_PREFIX, PRINTABLE, SHA256
from shared.bounds import COLLECTION_NAME, cut, shown
from shared.database.sqlstates import Meaning, first_line, trouble_of
from shared.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    QueueFull,
    SluiceError,
    TooLarge,
    Unauthorized,
    Unavailable,
    type_of,
)
from shared.kinds.registry import KINDS
from shared.prompts import NAME_RULE, PROMPT_NAME

log = logging.getLogger(__name__)


class BadCursor(SluiceError):
    """The cursor is not one of this list; pass a `next_cursor` unchanged, or none."""


def _retry_after(error: Any) -> dict[str, str]:
    if error.retry_after_s is None:
        return {}
    return {"Retry-After": str(math.ceil(error.retry_after_s))}


def _scheme(_error: Any) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer"}


def _none(_error: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The answer to a type of error."""

    status: int = 500
    """The status if a request raises the error; that of a failed job is
    `SluiceError.job_status`."""
    headers: Callable[[Any], Mapping[str, str]] = _none


RULES: dict[type[SluiceError], Rule] = {
    BadCursor: Rule(status=400),
    Conflict: Rule(status=409),
    Forbidden: Rule(status=403),
    InvalidInput: Rule(status=422),
    NotFound: Rule(status=404),
    QueueFull: Rule(status=429, headers=_retry_after),
    TooLarge: Rule(status=413),
    Unauthorized: Rule(status=401, headers=_scheme),
    Unavailable: Rule(status=503, headers=_retry_after),
}
"""A type that is not listed has the rule of its nearest base class, or else 500."""
NO_RULE = Rule()


def rule_of(type_: type[SluiceError]) -> Rule:
    return next((RULES[base] for base in type_.__mro__ if base in RULES), NO_RULE)


def problem_of(error: Exception, request: Request | None = None) -> Problem:
    """The problem of an exception; `request` is the request that raised it, if it is known."""
    for type_, translate in _TRANSLATE.items():
        if isinstance(error, type_):
            return translate(error, request)
    return _unexpected(error, request)


def problem_of_job(error: Mapping[str, Any]) -> Problem:
    """The problem of a failed job, from its stored error."""
    code = str(error.get("type", ""))
    type_ = type_of(code)
    status = type_.job_status if type_ is not None else 500
    return Problem(status=status, detail=str(error.get("message", "")), code=code)


def refusal(path: str, error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that is refused before its route, in the dialect of its path."""
    return _answer(path, problem_of(error), headers)


def install(app: FastAPI) -> None:
    def handle(request: Request, error: Exception) -> Response:
        return _answer(request.url.path, problem_of(error, request))

    def handle_unexpected(request: Request, error: Exception) -> Response:
        # The server closes the connection after this; the client must not send its next request on
        # it.
        return _answer(request.url.path, problem_of(error, request), {"Connection": "close"})

    for type_ in _TRANSLATE:
        app.add_exception_handler(type_, handle)
    app.add_exception_handler(Exception, handle_unexpected)


def _answer(path: str, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    response = dialect_of(path).answer(problem)
    response.headers.update(headers or {})
    return response


# Validation errors of pydantic, in words that name the field and the remedy.

SHOWN = 3
ERRORS_LIMIT = 100
"""How many entries `errors` has at most; one more says how many are left out."""
PART_CHARS, FIELD_CHARS, MESSAGE_CHARS = 64, 200, 500
# Errors for which pydantic's message does not say what to do.
REMEDIES = {
    "timezone_aware": "give a time zone, as in 2026-11-24T12:00:00Z",
    "extra_forbidden": "there is no such field; check its name",
    "missing": "is required",
    "union_tag_not_found": "is required",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "dict_type": "must be an object",
}
OF_BODY = {
    "missing": "a body is required: send a JSON object",
    "model_attributes_type": "the body must be a JSON object",
    "dict_type": "the body must be a JSON object",
}
PATTERNS = {
    COLLECTION_NAME: "use up to 128 letters of any script, digits, '.', '_', '-' and spaces, a "
    "letter or digit first and last",
    PROMPT_NAME: NAME_RULE,
    SHA256: "give a SHA-256 as 64 hexadecimal digits",
    ID_PREFIX: "give the first 4 to 32 hexadecimal digits of an id, with or without its hyphens",
    PRINTABLE: "use printable ASCII characters without spaces",
}
LOCATIONS = {"body", "query", "path", "header"}
# Pydantic's paths have the tags of unions, which are not in the document that the user has sent.
QUOTED = re.compile(r"'(\w+)'")
UNION_TAG = "<"
"""The first character of the tags of dialects' unions."""
JOBS_PATH = "/v1/jobs"
"""Bodies of this path are a union of the kinds; elsewhere `model` is a field."""
ITEM_TAGS = {
    *KINDS, "file", "text", "chunk", "document", "system", "user", "assistant", "tool"
}  # fmt: skip
# Parameter of OpenAI's API that is a union -> its tags
CHOICE_TAGS = {
    "tool_choice": {"mode", "function", "allowed_tools"},
    "response_format": {"text", "json_object", "json_schema"},
    "chunking_strategy": {"auto", "static"},
}


def _invalid(error: Exception, request: Request | None) -> Problem:
    """422 with entries for the first wrong fields, or 415 if the body has another content type."""
    assert isinstance(error, RequestValidationError)
    assert request is not None
    errors = error.errors()
    if any(tuple(entry["loc"]) in {("body",), ("body", "file")} for entry in errors[:ERRORS_LIMIT]):
        other = _other_content_type(request)
        if other is not None:
            return other
    tags = KINDS if request.url.path.startswith(JOBS_PATH) else ()
    entries = [
        {"field": field_of(e, tags) or "body", "message": _message(e)}
        for e in errors[:ERRORS_LIMIT]
    ]
    lines = [f"{entry['field']}: {entry['message']}" for entry in entries[:SHOWN]]
    more = f"; and {len(errors) - SHOWN:,} more" if len(errors) > SHOWN else ""
    if len(errors) > ERRORS_LIMIT:
        rest = f"and {len(errors) - ERRORS_LIMIT:,} more errors, which are not listed"
        entries.append({"field": "body", "message": rest})
    return Problem(
        status=422, detail="; ".join(lines) + more, code=InvalidInput.code, errors=entries
    )


def _other_content_type(request: Request) -> Problem | None:
    """The problem of a body with the wrong content type, for which validation would only say that
    it is no object; None if the type is right."""
    if dialect_of(request.url.path).takes_any_type:
        return None
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_upload = takes_uploads(request.url.path)
    expected = "multipart/form-data" if is_upload else "application/json"
    is_json = content_type == "application/json" or content_type.endswith("+json")
    if (content_type == expected) if is_upload else is_json:
        return None
    if request.headers.get("content-length", "0") == "0" and not content_type:
        return None
    detail = f"Send this body with Content-Type: {expected}; it came with {content_type or 'none'}."
    return Problem(status=415, detail=detail, headers={"Accept": expected})


def field_of(entry: Mapping[str, Any], tags: Collection[str] = ()) -> str:
    """The path of the wrong field in what the user has sent; empty for the whole. `tags` are those
    of the body, if it is a union."""
    parts: list[str] = []
    loc: Sequence[str | int] = entry["loc"]
    if entry["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        loc = [*loc, entry["ctx"]["discriminator"].strip("'")]
    for n, part in enumerate(loc):
        if n == 0 and part in LOCATIONS:
            continue
        if isinstance(part, str) and part.startswith(UNION_TAG):
            continue
        before = loc[n - 1] if n else None
        if (n == 1 and part in tags) or (isinstance(before, int) and part in ITEM_TAGS):
            continue
        if part in CHOICE_TAGS.get(str(before), ()):
            continue
        parts.append(cut(str(part), PART_CHARS))
    return cut(".".join(parts), FIELD_CHARS)


def _message(entry: Mapping[str, Any]) -> str:
    context = entry.get("ctx", {})
    if tuple(entry["loc"]) == ("body",) and entry["type"] in OF_BODY:
        return OF_BODY[entry["type"]]
    if entry["type"] == "union_tag_invalid":
        return (
            f"{shown(context['tag'])} is none of "
            f"{', '.join(QUOTED.findall(context['expected_tags']))}"
        )
    if entry["type"] == "string_pattern_mismatch" and context["pattern"] in PATTERNS:
        return PATTERNS[context["pattern"]]
    text = str(REMEDIES.get(entry["type"], entry["msg"]))
    return cut(text.removeprefix("Value error, "), MESSAGE_CHARS)


# Errors of the application, of HTTP, of the database, and unexpected ones

NOT_FOUND = "There is nothing at {path}. The paths are listed at /docs."


def _domain(error: Exception, _request: Request | None) -> Problem:
    assert isinstance(error, SluiceError)
    rule = rule_of(type(error))
    return Problem(
        status=rule.status, detail=cut(error.message), code=error.code, headers=rule.headers(error)
    )


def _http(error: Exception, request: Request | None) -> Problem:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if request is not None and error.status_code == 404:
        detail = NOT_FOUND.format(path=cut(request.url.path, 200))
    elif request is not None and error.status_code == 405:
        detail = f"{request.method} is not a method of {request.url.path}."
    return Problem(status=error.status_code, detail=cut(detail), headers=error.headers or {})


def _database(error: Exception, request: Request | None) -> Problem:
    """The meaning of a database error is that of its SQLSTATE; without one it is our fault."""
    trouble = trouble_of(error)
    status = _STATUS_OF[trouble.meaning] if trouble else 500
    if trouble is None or status == 500:
        if isinstance(error, DBAPIError):
            _log_database_error(request, error)
        return _unexpected(error, request)
    # Without the statement and its parameters, which have data of users.
    words = first_line(error) if status == 503 else type(error).__name__
    log.warning("database %s (SQLSTATE %s): %s", trouble.meaning.value, trouble.sqlstate, words)
    if status != 503 or trouble.meaning is Meaning.SCHEMA:
        return Problem(status=status, detail=trouble.message)
    detail = f"{trouble.message} Try again shortly."
    return Problem(
        status=status, detail=detail, code=Unavailable.code, headers={"Retry-After": "1"}
    )


_STATUS_OF = {
    Meaning.AWAY: 503,
    Meaning.BUSY: 503,
    Meaning.VALUE: 422,
    Meaning.CONFLICT: 409,
    Meaning.SCHEMA: 503,
    Meaning.FAULT: 500,
}


def _log_database_error(request: Request | None, error: DBAPIError) -> None:
    """Log the place and the code of an error, but not its message, which may quote data of
    users."""
    log.error(
        "database error in %s %s: %s (SQLSTATE %s)\n%s",
        request.method if request is not None else "",
        cut(request.url.path, 200) if request is not None else "",
        type(error.orig).__name__,
        getattr(error.orig, "sqlstate", None),
        "".join(traceback.format_tb(error.__traceback__)),
    )


def _unexpected(_error: Exception, _request: Request | None) -> Problem:
    detail = "The API failed; its log tells why. Please report this."
    return Problem(status=500, detail=detail)


def _as_it_is(error: Exception, _request: Request | None) -> Problem:
    assert isinstance(error, ProblemError)
    return error.problem


_TRANSLATE: dict[type[Exception], Callable[[Exception, Request | None], Problem]] = {
    ProblemError: _as_it_is,
    SluiceError: _domain,
    RequestValidationError: _invalid,
    HTTPException: _http,
    DBAPIError: _database,
    PoolTimeout: _database,
}
