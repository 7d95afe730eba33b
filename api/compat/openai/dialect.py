"""The dialect of OpenAI: its record, errors, ids, and the frames of streams.

Follows the published description, version 2.3.0 (github.com/openai/openai-openapi). The routes are
in the other modules of this folder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from fastapi import Response

from api.compat.calls import JobOutcome, Pause
from api.compat.dialect import Dialect, Problem
from shared.bounds import json_line, shown
from shared.errors import (
    InvalidInput,
    ModelNotFound,
    ModelNotServed,
    NotFound,
    QueueFull,
    Unauthorized,
    WindowExceeded,
)
from shared.kinds.batch import EndedJob

PREFIX = "/openai/v1"

# Errors are `{"error": {"message", "type", "param", "code"}}`.

CODES = {
    ModelNotFound.code: "model_not_found",
    ModelNotServed.code: "model_not_found",
    QueueFull.code: "rate_limit_exceeded",
    Unauthorized.code: "invalid_api_key",
    WindowExceeded.code: "context_length_exceeded",
}
"""Our codes of errors -> codes that OpenAI's clients know."""
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def type_of(status: int) -> str:
    """The `type` of an error."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def error_of(problem: Problem) -> dict[str, Any]:
    """The error object for answers, streams and failed jobs.

    `problem.fields` may have `param` and `code`.
    """
    problem = with_param(problem)
    param = problem.fields.get("param") or next(
        (entry["field"] for entry in problem.errors if entry.get("field") != "body"), None
    )
    return {
        "message": problem.detail,
        "type": type_of(problem.status),
        "param": param,
        "code": problem.fields.get("code") or CODES.get(problem.code),
    }


def _body(problem: Problem) -> dict[str, Any]:
    return {"error": error_of(problem)}


MODULES = (
    "models", "completions", "embeddings", "audio", "rerank", "files", "batches",
    "vector_stores", "responses", "conversations",
)  # fmt: skip
"""The modules of this folder that have routes."""

OPENAI = Dialect(
    name="openai",
    summary="The API of OpenAI, for programs that know it",
    tag="openai",
    prefixes=(f"{PREFIX}/",),
    route_prefix=PREFIX,
    routers=tuple(f"api.compat.openai.{module}:router" for module in MODULES),
    error=_body,
    error_schema={
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    # OpenAI's API answers 400 to everything that is wrong with the content of a request.
    statuses={422: 400},
    descriptions={
        400: "A parameter is wrong or is not supported here; `param` names it",
        404: "No such model or object",
        409: "The Idempotency-Key was used for another request",
        500: "The job failed",
        504: "No answer in time; the job was cancelled",
    },
    upload_paths=(f"{PREFIX}/audio/transcriptions", f"{PREFIX}/files"),
)


# Ids: a prefix and the 32 hexadecimal digits of our UUID


def uuid_of(prefix: str, id_: str, what: str) -> UUID:
    """The UUID of an id with this prefix. Raises NotFound, whose message calls the object
    `what`."""
    digits = id_.removeprefix(prefix)
    try:
        if digits == id_ or len(digits) != 32:
            raise ValueError
        return UUID(hex=digits)
    except ValueError:
        raise NotFound(
            f"There is no {what} {shown(id_)}; such an id is {prefix!r} and 32 hexadecimal digits."
        ) from None


# Requests, answers and streams

FIELD = re.compile(
    r"(?P<place>(?:input\.)?(?:parameters\.)?)"
    r"(?P<param>[a-z_]+(?:\.[a-z_]+|\.\d+|\[\d+\])*)"
    r"(?=:| (?:is|has|must|names|goes|needs|holds|comes|makes) )"
)
"""The beginning of our messages about a field."""
INDEX = re.compile(r"\[(\d+)\]")


def with_param(problem: Problem) -> Problem:
    """Add the name of the wrong parameter, taken from the message. In our inputs parameters are
    nested (`input.parameters.x`), here they are not."""
    has_field = any(entry["field"] != "body" for entry in problem.errors)
    detail = problem.detail.removeprefix("body: ")
    match = FIELD.match(detail)
    is_input = problem.code == InvalidInput.code or (not problem.code and problem.status == 422)
    if not is_input or has_field or match is None:
        return problem
    detail = detail[match.end("place") :]
    param = INDEX.sub(r".\1", match["param"])
    fields = {"param": param, **problem.fields}
    return replace(problem, detail=detail, fields=fields)


def answer_json(body: Any, headers: Mapping[str, str]) -> Response:
    """An answer that is serialized without being validated, which saves time."""
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(
        data.encode("utf-8", "backslashreplace"),
        headers=dict(headers),
        media_type="application/json",
    )


def ended_job_of(outcome: JobOutcome, options: Mapping[str, Any]) -> EndedJob:
    """The outcome of a job as endpoints take it (`shared/kinds/batch.py`). `options` are those of
    its `JobSpec`."""
    return EndedJob(
        id=outcome.id,
        input=outcome.input,
        result=outcome.result,
        created_at=outcome.created_at,
        options=options,
    )


EVENT_STREAM = "text/event-stream"
DONE_FRAME = b"data: [DONE]\n\n"


def data_frame(body: Any) -> bytes:
    """The frame of a chunk."""
    return b"data: " + json_line(body).encode("utf-8", "backslashreplace") + b"\n\n"


def error_frame(problem: Problem) -> bytes:
    """The frame of an error, which ends a stream."""
    return data_frame(_body(problem))


def keep_alive(pause: Pause) -> bytes:
    """A comment, which clients ignore: it keeps the connection open and tells the queue
    position."""
    if pause.position is None:
        return b": still here\n\n"
    eta = "" if pause.eta_s is None else f", about {pause.eta_s:.0f} s"
    return f": {pause.position} before this one{eta}\n\n".encode()
