"""Errors of commands: exit codes, and the JSON document of an error.

`docs/cli.md` lists the codes for users. Commands raise the errors of the client (`sluice.errors`);
those about this machine raise errors of `shared.errors`.
"""

from enum import IntEnum
from typing import Any

import shared.errors
import sluice.errors
from sluice import ApiError, ConnectionFailed, JobCancelled, JobEndedBadly, State, WaitTimeout

ERRORS = (sluice.errors.SluiceError, shared.errors.SluiceError)
"""Errors whose message is for the user."""
AnyError = sluice.errors.SluiceError | shared.errors.SluiceError


class Interrupted(sluice.errors.SluiceError):
    """Ctrl-C ended the waiting. The message says what is still running."""


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    CANCELLED = 6
    TIMEOUT = 7
    INTERNAL = 70
    INTERRUPTED = 130
    CLOSED_PIPE = 141


_EXIT_OF_STATE: dict[str, Exit] = {State.FAILED: Exit.FAILED, State.CANCELLED: Exit.CANCELLED}

_EXIT_OF_ERROR: tuple[tuple[type[AnyError], Exit], ...] = (
    (JobCancelled, Exit.CANCELLED),
    (WaitTimeout, Exit.TIMEOUT),
    (Interrupted, Exit.INTERRUPTED),
    (ConnectionFailed, Exit.UNREACHABLE),
    (shared.errors.Unavailable, Exit.UNREACHABLE),
    (shared.errors.NotFound, Exit.NOT_FOUND),
    (shared.errors.ConfigurationError, Exit.USAGE),
    (shared.errors.InvalidInput, Exit.USAGE),
    (sluice.errors.NotFound, Exit.NOT_FOUND),
    (sluice.errors.ConfigurationError, Exit.USAGE),
    (sluice.errors.InvalidInput, Exit.USAGE),
)


def exit_of_state(state: str) -> Exit:
    """The exit code of a command that ends with a job or batch in this state."""
    return _EXIT_OF_STATE.get(state, Exit.OK)


def exit_of_error(error: AnyError) -> Exit:
    if isinstance(error, ApiError):
        if error.status == 404:
            return Exit.NOT_FOUND
        return Exit.UNREACHABLE if error.status >= 500 else Exit.REFUSED
    for class_, code in _EXIT_OF_ERROR:
        if isinstance(error, class_):
            return code
    return Exit.FAILED


def error_document(
    error: Exception, message: str, exit_code: int, *, type_: str | None = None
) -> dict[str, Any]:
    """The document of an error for `--json`, with all details of the error."""
    # One type for all errors of the API; their `status` distinguishes them.
    name = ApiError.__name__ if isinstance(error, ApiError) else type(error).__name__
    entry: dict[str, Any] = {
        "type": type_ or name,
        "message": message,
        "exit_code": int(exit_code),
    }
    if isinstance(error, ApiError):
        entry |= {
            "status": error.status,
            "title": error.title,
            "detail": error.detail,
            "errors": list(error.errors),
            "retry_after_s": error.retry_after_s,
        }
    elif isinstance(error, JobEndedBadly):
        entry |= {
            "job_id": error.job.id,
            "state": str(error.job.state),
            "job_error": None if error.job.error is None else error.job.error.model_dump(),
        }
    elif isinstance(error, WaitTimeout):
        entry |= {"job_id": error.job_id, "timeout_s": error.timeout_s}
    return {"error": entry}
