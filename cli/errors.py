"""How a command ends where it has no result: exit codes, and the document of an error.

`docs/cli.md` lists the codes for users. A command raises the errors of the client (`sluice.errors`)
and, about this machine, those of `shared.errors`.
"""

from enum import IntEnum
from typing import Any

import shared.errors
import sluice.errors
from sluice import ApiError, ConnectionFailed, JobCancelled, JobEndedBadly, State, WaitTimeout

ERRORS = (sluice.errors.SluiceError, shared.errors.SluiceError)
"""What is raised on purpose, with a message for the person."""
AnyError = sluice.errors.SluiceError | shared.errors.SluiceError


class Interrupted(sluice.errors.SluiceError):
    """Ctrl-C ended the waiting; the message says what goes on."""


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


OF_STATE: dict[str, Exit] = {State.FAILED: Exit.FAILED, State.CANCELLED: Exit.CANCELLED}
"""For commands that end with a job; any other state is no error."""

_OF_ERROR: tuple[tuple[type[AnyError], Exit], ...] = (
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


def of_error(error: AnyError) -> Exit:
    if isinstance(error, ApiError):
        if error.status == 404:
            return Exit.NOT_FOUND
        return Exit.UNREACHABLE if error.status >= 500 else Exit.REFUSED
    for kind, code in _OF_ERROR:
        if isinstance(error, kind):
            return code
    return Exit.FAILED


def error_document(
    error: Exception, message: str, exit_code: int, *, type_: str | None = None
) -> dict[str, Any]:
    """What `--json` runs say of an error, with all that it knows besides its message."""
    # One name for all answers of the API, whose `status` tells them apart.
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
