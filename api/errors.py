"""Exceptions become answers here, and nowhere else. No answer shows a stack trace."""

import logging
import math
import traceback

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.compat.dialect import refusal
from api.cursors import BadCursor
from api.validation import invalid
from shared.bounds import cut
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
from shared.sqlstates import Meaning, first_line, trouble_of

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
