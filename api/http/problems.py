"""RFC 9457 problems: the one shape of every error that the API answers with.

Nothing here knows of exceptions; `api/http/errors.py` translates those.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Response

MEDIA_TYPE = "application/problem+json"


def problem(
    status: int,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem response; `errors` are entries of `field` and `message`."""
    body = problem_body(status, detail, errors)
    return Response(
        json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def problem_body(
    status: int, detail: str, errors: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = [dict(entry) for entry in errors]
    return body


# Errors as each surface tells them: problems, but `{"error": "..."}` on Hugging Face's paths.
#
# That API answers 400 to whatever is wrong with a request's content, where the native one
# says 422.

HUGGING_FACE = ("/models/", "/pipeline/")
"""How the paths begin that programs know from the inference API."""
PREFIXES = {401: "Invalid credentials in Authorization header. "}
"""Words that clients of that API look for."""


def is_hugging_face(path: str) -> bool:
    return path.startswith(HUGGING_FACE)


def asks_for_key(path: str) -> bool:
    """Whether a path is served to those alone who have one of the keys, where keys are set."""
    return path.startswith("/v1/") or is_hugging_face(path)


def refusal(
    path: str,
    status: int,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in the dialect of a path; `errors` are for the native one alone."""
    if not is_hugging_face(path):
        return problem(status, detail, errors=errors, headers=headers)
    return hugging_face_error(400 if status == 422 else status, detail, headers=headers)


def hugging_face_error(
    status: int, message: str, *, headers: Mapping[str, str] | None = None, **fields: float
) -> Response:
    """`fields` are what else the body has, as `estimated_time`."""
    body = {"error": PREFIXES.get(status, "") + message, **fields}
    return Response(
        json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route in this dialect, for its entry in /docs."""
    return {
        status: {
            "description": ERRORS[status],
            "content": {"application/json": {"schema": ERROR_SCHEMA}},
        }
        for status in statuses
    }


ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "estimated_time": {"type": "number"}},
}
ERRORS = {
    400: "The inputs or parameters are wrong, or are not of the model's task",
    401: "No valid API key",
    403: "Sent by a web page of another origin",
    404: "No such model",
    408: "The body did not come in time",
    409: "The Idempotency-Key was used for another request",
    413: "Too large",
    421: "Not a name of this server",
    429: "The queue is full; see Retry-After",
    431: "The head of the request is too large",
    500: "The job failed",
    503: "The model is loading (`estimated_time`), or a server does not answer",
    504: "The job runs on; its id is in the header x-sluice-job-id",
}
