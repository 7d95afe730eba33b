"""The errors of the client. All are `SluiceError`, each with a `message`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sluice.shapes import Job

_SHOWN_ERRORS = 3


class SluiceError(Exception):
    """Something went wrong between this program and Sluice."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__ or "")

    @property
    def message(self) -> str:
        return str(self.args[0])


class ConfigurationError(SluiceError):
    """A setting is missing or wrong."""


class InvalidInput(SluiceError):
    """The input cannot be used as it is; nothing was sent."""


class NotFound(SluiceError):
    """No such thing, or several of them."""


class ApiError(SluiceError):
    """The API answered with an error (RFC 9457 problem+json)."""

    def __init__(
        self,
        *,
        status: int,
        title: str = "",
        detail: str = "",
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after_s: float | None = None,
    ) -> None:
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = tuple(dict(entry) for entry in errors)
        self.retry_after_s = retry_after_s
        super().__init__(_describe(status, title, detail, self.errors))


class BadRequest(ApiError):
    """400: the request cannot be read, or a worker refused the input of the job."""


class Unauthorized(ApiError):
    """401: the key is missing or wrong."""


class Forbidden(ApiError):
    """403: the key has no right to do this."""


class Missing(ApiError, NotFound):
    """404: there is no such thing."""


class Conflict(ApiError):
    """409: there is already another one with this name, or its state does not allow the change."""


class TooLarge(ApiError):
    """413: the body has more bytes than the API accepts."""


class UnsupportedMediaType(ApiError):
    """415: the API does not accept bodies of this type."""


class Unprocessable(ApiError):
    """422: a field is wrong; `errors` names each."""


class TooManyRequests(ApiError):
    """429: the queue is full, or the key has used up its share; try after `retry_after_s`."""


class ServerError(ApiError):
    """500 and above: the API has failed."""


class BadGateway(ServerError):
    """502: a gateway before the API cannot reach it."""


class Unavailable(ServerError):
    """503: a server that the API needs does not answer; the message names it."""


class GatewayTimeout(ServerError):
    """504: the answer took longer than a gateway, or the job's own limit, allows."""


OF_STATUS: Mapping[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: Missing,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: Unprocessable,
    429: TooManyRequests,
    502: BadGateway,
    503: Unavailable,
    504: GatewayTimeout,
}


def of_status(status: int) -> type[ApiError]:
    """The class of errors with this status, else `ServerError` (from 500 on) or `ApiError`."""
    return OF_STATUS.get(status, ServerError if status >= 500 else ApiError)


class ConnectionFailed(SluiceError):
    """The API does not answer. Is it running? Start it with `sluice up`."""


class ConnectionBroken(ConnectionFailed):
    """The connection broke during the request. It may or may not have been carried out."""


class WaitTimeout(SluiceError):
    """The job did not end within the timeout; it goes on."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        self.job_id = job_id
        self.timeout_s = timeout_s
        super().__init__(
            f"Job {job_id} did not end within {timeout_s:g} s; it goes on. "
            f"Follow it with `sluice jobs watch {job_id}`."
        )


class JobEndedBadly(SluiceError):
    """The job did not succeed; `job` has its last state."""

    def __init__(self, job: "Job", message: str) -> None:
        self.job = job
        super().__init__(message)


class JobFailed(JobEndedBadly):
    """The job failed; `job.error` says why."""

    def __init__(self, job: "Job") -> None:
        reason = job.error.message if job.error else "no reason was recorded"
        super().__init__(job, f"Job {job.id} ({job.kind}) failed: {reason}")


class JobCancelled(JobEndedBadly):
    """The job was cancelled."""

    def __init__(self, job: "Job") -> None:
        super().__init__(job, f"Job {job.id} ({job.kind}) was cancelled.")


def _describe(status: int, title: str, detail: str, errors: Sequence[Mapping[str, Any]]) -> str:
    text = detail or title or f"The API answered with status {status}."
    shown = [_entry(entry) for entry in errors[:_SHOWN_ERRORS]]
    # The detail often has the text of the only error already.
    shown = [line for line in shown if line not in text]
    if shown:
        text = f"{text.rstrip('.')}: {'; '.join(shown)}"
        if len(errors) > _SHOWN_ERRORS:
            text += f"; and {len(errors) - _SHOWN_ERRORS} more"
    return text


def _entry(entry: Mapping[str, Any]) -> str:
    where = entry.get("loc", entry.get("pointer", entry.get("field", "")))
    if isinstance(where, Sequence) and not isinstance(where, str):
        where = ".".join(str(part) for part in where)
    what = entry.get("msg", entry.get("message", entry.get("detail", "")))
    return f"{where}: {what}" if where and what else str(what or where or dict(entry))
