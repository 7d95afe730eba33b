"""Exit codes of the CLI, and which error leads to which; `docs/cli.md` lists them for users."""

from enum import IntEnum

from cli.client.shapes import State
from cli.errors import ApiError, ConnectionFailed, Interrupted, JobCancelled, WaitTimeout
from shared.errors import ConfigurationError, InvalidInput, NotFound, SluiceError, Unavailable


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

_OF_ERROR: tuple[tuple[type[SluiceError], Exit], ...] = (
    (JobCancelled, Exit.CANCELLED),
    (WaitTimeout, Exit.TIMEOUT),
    (Interrupted, Exit.INTERRUPTED),
    (ConnectionFailed, Exit.UNREACHABLE),
    (Unavailable, Exit.UNREACHABLE),
    (NotFound, Exit.NOT_FOUND),
    (ConfigurationError, Exit.USAGE),
    (InvalidInput, Exit.USAGE),
)


def of_error(error: SluiceError) -> Exit:
    if isinstance(error, ApiError):
        if error.status == 404:
            return Exit.NOT_FOUND
        return Exit.UNREACHABLE if error.status >= 500 else Exit.REFUSED
    for kind, code in _OF_ERROR:
        if isinstance(error, kind):
            return code
    return Exit.FAILED
