"""Exceptions become answers here, and nowhere else. No answer shows a stack trace."""

import logging
import math
import traceback

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
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
    """Postgres is down, unreachable or too slow; anything else of the database is our fault."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, UndefinedTable | UndefinedColumn):
        lacks = "The database lacks tables of this version; run `sluice migrate`."
        return refusal(request.url.path, 503, lacks)
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if not lost and not isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        if isinstance(error, DBAPIError):
            _log_database_error(request, error)
        return _unexpected(request, error)
    # Without the statement and its parameters, which hold what users sent.
    reason = error.orig if isinstance(error, DBAPIError) else error
    log.warning("database unavailable: %s", str(reason).strip().partition("\n")[0])
    return refusal(
        request.url.path,
        503,
        "The database (SLUICE_DATABASE_URL) does not answer. Try again shortly.",
        headers={"Retry-After": "1"},
    )


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
