"""The one exception hierarchy. A docstring is the default message.

Raised anywhere below the edges; translated to HTTP by `api/http/errors.py`, to exit codes by
`cli/`, and to retries by `workers/attempts/retry.py`. Messages name the item and say what to do.
"""

from typing import ClassVar


class SluiceError(Exception):
    """Something went wrong in Sluice."""

    code: ClassVar[str] = "SluiceError"
    """What clients and stored jobs know the error by (`error.type`). It stays as it is when the
    class is renamed; a class that states none has its own name for one."""
    job_status: ClassVar[int] = 500
    """The HTTP status of an answer that stands for a job which has ended with it: the request
    itself was right."""

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = cls.__name__

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__ or "")

    @property
    def message(self) -> str:
        return str(self.args[0])


class ConfigurationError(SluiceError):
    """A setting is missing or wrong."""

    code = "ConfigurationError"


class NotFound(SluiceError):
    """No such thing."""

    code = "NotFound"
    job_status = 404


class Conflict(SluiceError):
    """The request contradicts the present state."""

    code = "Conflict"
    job_status = 400


class InvalidInput(SluiceError):
    """The input cannot be used as it is."""

    code = "InvalidInput"
    job_status = 400


class WindowExceeded(InvalidInput):
    """The messages have more tokens than the model's window leaves for them."""

    code = "WindowExceeded"


class TooLarge(SluiceError):
    """The body is larger than the server accepts."""

    code = "TooLarge"
    job_status = 400


class QueueFull(SluiceError):
    """The queue is full; try again later."""

    code = "QueueFull"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthorized(SluiceError):
    """Send a valid API key as `Authorization: Bearer <key>`."""

    code = "Unauthorized"


class Forbidden(SluiceError):
    """The key may not do this; SLUICE_API_KEY_SCOPES on the server says what it may."""

    code = "Forbidden"


class StepError(SluiceError):
    """A step did not succeed."""

    code = "StepError"


class Retryable(StepError):
    """The step failed for a reason that may pass; it is tried again with backoff."""

    code = "Retryable"


class Unavailable(Retryable):
    """A server that the step needs does not answer; the attempt is not counted against it."""

    code = "Unavailable"
    job_status = 503

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """What the server asked for (`Retry-After`); the next attempt comes no sooner."""


class WorkerLost(Retryable):
    """The worker that ran the step died or hung."""

    code = "WorkerLost"


class Permanent(StepError):
    """The step cannot succeed as it is; it fails at once."""

    code = "Permanent"
    job_status = 400


class Timeout(Permanent):
    """The job ran longer than its `timeout_s`."""

    code = "Timeout"
    job_status = 504


class ModelNotServed(Permanent):
    """No worker holds the model that the job asks for."""

    code = "ModelNotServed"
    job_status = 503


class ModelNotFound(Permanent):
    """There is no such model."""

    code = "ModelNotFound"
    job_status = 404


class WrongTask(Permanent):
    """The model is not made for the task."""

    code = "WrongTask"


class NotJson(Permanent):
    """The model's answer is not the JSON that the job requires."""

    code = "NotJson"


class BatchExpired(Permanent):
    """The time of the batch was up before all of its lines were done."""

    code = "BatchExpired"


class Cancelled(StepError):
    """The job was cancelled, or the attempt is no longer this worker's."""

    code = "Cancelled"


class DocumentError(SluiceError):
    """One document of an ingest job cannot be ingested; the others go on."""

    code = "DocumentError"


def code_of(error: BaseException) -> str:
    """What a job that failed with this error stores as its type."""
    return error.code if isinstance(error, SluiceError) else type(error).__name__


def type_of(code: str) -> type[SluiceError] | None:
    """The class of this module that a stored code stands for."""
    return _TYPES.get(code)


def _all_types(base: type[SluiceError]) -> list[type[SluiceError]]:
    return [base, *(type_ for sub in base.__subclasses__() for type_ in _all_types(sub))]


_TYPES = {type_.code: type_ for type_ in _all_types(SluiceError)}
