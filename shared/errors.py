"""The one exception hierarchy. A docstring is the default message.

Raised anywhere below the edges; translated to problem+json by `api/http/errors.py`, to exit codes
by `cli/`, and to retries by `workers/attempts/retry.py`. Messages name the item and say what to
do.
"""


class SluiceError(Exception):
    """Something went wrong in Sluice."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__ or "")

    @property
    def message(self) -> str:
        return str(self.args[0])


class ConfigurationError(SluiceError):
    """A setting is missing or wrong."""


class NotFound(SluiceError):
    """No such thing."""


class Conflict(SluiceError):
    """The request contradicts the present state."""


class InvalidInput(SluiceError):
    """The input cannot be used as it is."""


class TooLarge(SluiceError):
    """The body is larger than the server accepts."""


class QueueFull(SluiceError):
    """The queue is full; try again later."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthorized(SluiceError):
    """Send a valid API key as `Authorization: Bearer <key>`."""


class StepError(SluiceError):
    """A step did not succeed."""


class Retryable(StepError):
    """The step failed for a reason that may pass; it is tried again with backoff."""


class Unavailable(Retryable):
    """A server that the step needs does not answer; the attempt is not counted against it."""

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """What the server asked for (`Retry-After`); the next attempt comes no sooner."""


class WorkerLost(Retryable):
    """The worker that ran the step died or hung."""


class Permanent(StepError):
    """The step cannot succeed as it is; it fails at once."""


class Timeout(Permanent):
    """The job ran longer than its `timeout_s`."""


class ModelNotServed(Permanent):
    """No worker holds the model that the job asks for."""


class ModelNotFound(Permanent):
    """There is no such model."""


class WrongTask(Permanent):
    """The model is not made for the task."""


class Cancelled(StepError):
    """The job was cancelled, or the attempt is no longer this worker's."""


class DocumentError(SluiceError):
    """One document of an ingest job cannot be ingested; the others go on."""
