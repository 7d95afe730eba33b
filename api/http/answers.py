"""Answers: views as JSON, cursors of lists, and results of jobs."""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from api.deps import Parts
from api.http.errors import BadCursor
from api.schemas import JobView
from shared.bounds import is_deep
from shared.jobs import jobs
from shared.jobs.queues import Estimate, estimate
from shared.tables import Job

# Opaque cursors: the position after which a list continues. A cursor is valid for one list only.


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
    """The view as JSON. Values that are nested too deeply to be serialized are left out."""
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
            values[name] = [_shallow(item) for item in value]
        elif is_deep(value):
            values[name] = {} if isinstance(value, dict) else None
    if isinstance(view, JobView):
        return view.model_copy(update=view.reduced(list(values)) | values)
    return view.model_copy(update=values)


# The bare result of a job: from its row, or streamed from the storage if it is large.

JSON_MEDIA_TYPE = "application/json"


def result_response(
    parts: Parts, job: Job, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    """The result of a job that has succeeded. Blocks: call it in a thread.

    Raises NotFound if the storage does not have it, Unavailable if it does not answer.
    """
    response_headers = dict(headers or {})
    if job.result_path is None:
        data = json.dumps(job.result, ensure_ascii=False, separators=(",", ":"))
        return Response(data.encode(), status, response_headers, JSON_MEDIA_TYPE)
    blocks = parts.storage.blocks(job.result_path)
    # The first block is read now, so that a lost file is an error instead of a truncated answer.
    first = next(blocks, b"")
    if job.result_bytes is not None:
        response_headers["Content-Length"] = str(job.result_bytes)
    return StreamingResponse(chain(first, blocks), status, response_headers, JSON_MEDIA_TYPE)


def chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def job_view(parts: Parts, job_id: UUID, fair_key: str, *, is_whole: bool = False) -> JobView:
    """The job at this moment, as the key may see it. Raises NotFound.

    Unless `is_whole`, an input above SLUICE_RESULT_INLINE_BYTES is left out, so that events and
    answers stay small.
    """
    limit_bytes = parts.settings.result_inline_bytes
    with parts.ledger.read_single() as session:
        job, contents = (
            (jobs.get(session, job_id), None)
            if is_whole
            else jobs.with_small_contents(session, job_id, limit_bytes=limit_bytes)
        )
        estimates = estimate(
            session,
            [job],
            worker_heartbeat_s=parts.settings.worker_heartbeat_s,
            depths=parts.depths,
        )
    return JobView.of(job, estimates.get(job_id, Estimate()), fair_key, contents)
