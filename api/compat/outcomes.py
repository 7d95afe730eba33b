"""How a job ended, told as the inference API tells it: the bare result, or an error's status.

What there is to know of a result, such as that a text was cut off, is in headers `x-warning`.
"""

from collections.abc import Sequence
from urllib.parse import quote

from starlette.responses import Response

from api.compat.dialect import hugging_face_error
from api.deps import Parts
from api.results import result_response
from shared.errors import (
    Conflict,
    InvalidInput,
    ModelNotFound,
    ModelNotServed,
    NotFound,
    Permanent,
    Timeout,
    TooLarge,
    Unavailable,
    WrongTask,
)
from shared.models import Job
from shared.states import OPEN, State

WARNING = "x-warning"
WARNINGS_SHOWN = 8
"""Clients take a hundred headers; the job has all warnings."""
WARNING_CHARS = 1000
PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

STATUS = {
    error.__name__: status
    for status, errors in {
        400: (InvalidInput, TooLarge, WrongTask, Permanent, Conflict),
        404: (ModelNotFound, NotFound),
        503: (Unavailable, ModelNotServed),
        504: (Timeout,),
    }.items()
    for error in errors
}
"""By the name of the error that the job ended with; 500 for all others."""


def answer(parts: Parts, job: Job, headers: dict[str, str]) -> Response:
    """The answer that a job gives as it is now. Blocks: call it in a thread."""
    if job.state == State.SUCCEEDED:
        response = result_response(parts, job, headers)
        for warning in shown_warnings(job.warnings, str(job.id)):
            response.headers.append(WARNING, warning)
        return response
    if job.state == State.CANCELLED:
        return hugging_face_error(
            503, f"Job {job.id} was cancelled. Send the request again.", headers=headers
        )
    if job.state in OPEN:
        return _still_running(parts, job, headers)
    error = job.error or {}
    type_, message = str(error.get("type", "")), str(error.get("message", ""))
    if type_ == ModelNotFound.__name__:
        message = f"Model {job.input['model']} does not exist. {message}"
    return hugging_face_error(STATUS.get(type_, 500), message, headers=headers)


def shown_warnings(warnings: Sequence[str], job_id: str) -> list[str]:
    """Values of headers; what ASCII does not have is percent-encoded."""
    shown = [_header_safe(warning) for warning in warnings[:WARNINGS_SHOWN]]
    if len(warnings) > WARNINGS_SHOWN:
        more = len(warnings) - WARNINGS_SHOWN
        shown.append(f"and {more} more: GET /v1/jobs/{job_id} has all")
    return shown


def _header_safe(text: str) -> str:
    short = text if len(text) <= WARNING_CHARS else f"{text[:WARNING_CHARS]} ..."
    return quote(short, safe=PRINTABLE)


def _still_running(parts: Parts, job: Job, headers: dict[str, str]) -> Response:
    where = f"The job {job.id} goes on: GET /v1/jobs/{job.id} tells of it."
    if parts.stopping.is_set():
        return hugging_face_error(503, f"The server is being stopped. {where}", headers=headers)
    wait_s = parts.settings.compat_wait_s
    return hugging_face_error(
        504,
        f"Model {job.input['model']} did not answer within {wait_s:g} s (SLUICE_COMPAT_WAIT_S); "
        f"it is still running. {where}",
        headers=headers,
    )
