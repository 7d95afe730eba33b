"""The API of OpenAI: its record, its errors, its ids, and what all its requests have in common.

After the published description, version 2.3.0 (github.com/openai/openai-openapi). Modules beside
this one have the routes; `router.py` lists them.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import model_validator

from api.compat.dialect import Dialect, Problem
from shared.bounds import shown
from shared.errors import ModelNotFound, ModelNotServed, NotFound, QueueFull, Unauthorized
from shared.vocabulary import Shape

PREFIX = "/openai/v1"

# Errors are `{"error": {"message", "type", "param", "code"}}`.

CODES = {
    ModelNotFound.code: "model_not_found",
    ModelNotServed.code: "model_not_found",
    QueueFull.code: "rate_limit_exceeded",
    Unauthorized.code: "invalid_api_key",
}
"""What OpenAI's own clients know by a code."""
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def type_of(status: int) -> str:
    """The `type` of an error."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def error_of(problem: Problem) -> dict[str, Any]:
    """An error as it stands in answers, in streams, and in jobs that are shown.

    `problem.fields` may name `param` and `code`.
    """
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


OPENAI = Dialect(
    name="openai",
    summary="The API of OpenAI, for programs that know it",
    tag="openai",
    prefixes=(f"{PREFIX}/",),
    router="api.compat.openai.router:router",
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
    # Whatever is wrong with the content of a request.
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


# Ids are made from ours: a prefix and the 32 hexadecimal digits of a UUID.


def id_of(prefix: str, id_: UUID) -> str:
    """As `chatcmpl-<hex>`; the prefix ends with its own sign."""
    return f"{prefix}{id_.hex}"


def uuid_of(prefix: str, id_: str, what: str) -> UUID:
    """The UUID behind an id of that prefix. Raises NotFound, naming `what` is sought."""
    digits = id_.removeprefix(prefix)
    try:
        if digits == id_ or len(digits) != 32:
            raise ValueError
        return UUID(hex=digits)
    except ValueError:
        raise NotFound(
            f"There is no {what} {shown(id_)}; such an id is {prefix!r} and 32 hexadecimal digits."
        ) from None


class WireShape(Shape):
    """Base of this dialect's requests: a null is a parameter that is left out, as all of its
    clients may send it."""

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_left_out(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: item for name, item in value.items() if item is not None}
        return value
