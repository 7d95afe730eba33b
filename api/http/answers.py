"""Answers from prepared views: serialized once, by pydantic, without another validation."""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from api.deps import Parts
from api.http.errors import MEDIA_TYPE, BadCursor
from api.schemas import JobView, ProblemView
from shared.bounds import is_deep
from shared.tables import Job

# Opaque cursors: where a list goes on. A cursor of one list does not fit another.


def encode(of: str, position: str) -> str:
    return base64.urlsafe_b64encode(f"{of}:{position}".encode()).decode().rstrip("=")


def decode(of: str, cursor: str | None) -> str | None:
    """The position in the list `of`. Raises BadCursor."""
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        name, _, position = base64.urlsafe_b64decode(padded.encode()).decode().partition(":")
    except (binascii.Error, UnicodeError) as error:
        raise BadCursor from error
    if name != of or not position or not position.isprintable():
        raise BadCursor
    return position


def decode_id(of: str, cursor: str | None) -> UUID | None:
    position = decode(of, cursor)
    try:
        return None if position is None else UUID(position)
    except ValueError as error:
        raise BadCursor from error


# The header `Prefer: wait=N` (RFC 7240): how long an answer may be held back for a job's end.

WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)


def wait_s(prefer: Sequence[str] | None, *, at_most: float) -> float | None:
    """Seconds to wait; None where the header does not ask for it, or cannot be understood.

    A preference that is not understood is ignored, as the RFC says.
    """
    match = WAIT.search(",".join(prefer or ()))
    return min(float(match[1]), at_most) if match else None


def applied(seconds: float | None) -> dict[str, str]:
    """The answer's header, where the preference was honoured."""
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds:g}"}


def answer(
    view: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        as_json(view),
        status_code=status,
        headers=dict(headers) if headers else None,
        media_type="application/json",
    )


ViewT = TypeVar("ViewT", bound=BaseModel)


def as_json(view: BaseModel) -> str:
    """The view as JSON, less what lies so deep in it that it cannot be written."""
    try:
        return view.model_dump_json()
    except (ValueError, RecursionError):
        return _shallow(view).model_dump_json()


def _shallow(view: ViewT) -> ViewT:
    values: dict[str, Any] = {}
    for name, value in view:
        if isinstance(value, BaseModel):
            values[name] = _shallow(value)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            values[name] = [_shallow(each) for each in value]
        elif is_deep(value):
            values[name] = {} if isinstance(value, dict) else None
    if isinstance(view, JobView):
        return view.model_copy(update=view.reduced(list(values)) | values)
    return view.model_copy(update=values)


def documented(
    views: Mapping[int, type[BaseModel]], *problems: int
) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for its entry in /docs."""
    responses: dict[int | str, dict[str, Any]] = {code: {"model": v} for code, v in views.items()}
    schema = {"$ref": f"#/components/schemas/{ProblemView.__name__}"}
    for code in problems:
        responses[code] = {
            "description": PROBLEMS[code],
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
    return responses


PROBLEMS = {
    400: "Not HTTP/1.1 or not JSON, or a cursor of another list",
    401: "No valid API key",
    403: "Sent by a web page of another origin",
    404: "No such thing",
    408: "The body did not come in time",
    409: "Contradicts the present state",
    413: "Too large",
    415: "Another content type is wanted",
    421: "Not a name of this server",
    422: "Not valid; `errors` names the fields",
    429: "The queue is full; see Retry-After",
    431: "The head of the request is too large",
    503: "A server behind the API does not answer, or there is too much to do; see Retry-After",
}


# A job's bare result: as JSON, from its row, or streamed from the storage where it is large.

JSON_MEDIA_TYPE = "application/json"


def result_response(
    parts: Parts, job: Job, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    """The result of a job that has succeeded. Blocks: call it in a thread.

    Raises NotFound or Unavailable where the storage does not have it.
    """
    response_headers = dict(headers or {})
    if job.result_path is None:
        data = json.dumps(job.result, ensure_ascii=False, separators=(",", ":"))
        return Response(data.encode(), status, response_headers, JSON_MEDIA_TYPE)
    blocks = parts.storage.blocks(job.result_path)
    # The first is read here, so that a lost file is an error and not a cut answer.
    first = next(blocks, b"")
    if job.result_bytes is not None:
        response_headers["Content-Length"] = str(job.result_bytes)
    return StreamingResponse(chain(first, blocks), status, response_headers, JSON_MEDIA_TYPE)


def chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
