"""The dialect of Ollama: its record, its errors, and what all its requests and answers share.

After `api/types.go`, `server/routes.go` and `docs/api.md` of github.com/ollama/ollama, August 2026.
Clients take it by `OLLAMA_HOST=http://<host>:<port>/ollama`. Bodies are JSON whatever their content
type says (`curl -d`), streams are a line of JSON for each part, durations are nanoseconds.
"""

import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import Request, Response

from api.compat.calls import StreamedAnswer
from api.compat.dialect import Dialect, Problem
from api.http.body import StrictRoute
from shared.bounds import json_line
from shared.errors import InvalidInput
from shared.vocabulary import WireShape

PREFIX = "/ollama"
VERSION = "0.14.0"
"""What clients are told that this is: the version whose API it has."""


PLACE = re.compile(r"(?:body: )?(?:input\.(?=parameters|messages|model))?(?:parameters\.)?")
"""Where our inputs have a field that stands elsewhere in requests of this dialect."""


def _body(problem: Problem) -> dict[str, Any]:
    return {"error": PLACE.sub("", problem.detail, count=1)}


OLLAMA_API = Dialect(
    name="ollama",
    summary="The API of Ollama, for programs that know it",
    tag="ollama",
    prefixes=(f"{PREFIX}/",),
    route_prefix=PREFIX,
    routers=tuple(
        f"api.compat.ollama.{module}:router" for module in ("models", "chat", "embeddings")
    ),
    takes_any_type=True,
    error=_body,
    error_schema={
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
    # Whatever is wrong with the content of a request.
    statuses={422: 400},
    descriptions={
        400: "A field is wrong, or is not supported here; the error names it",
        404: "No such model",
        409: "The Idempotency-Key was used for another request",
        500: "The job failed",
        501: "Not to be had from this server",
        504: "No answer in time; the job was cancelled",
    },
)


class AnyTypeRoute(StrictRoute):
    """A route that takes its body for JSON: nobody says so with `curl -d`, as Ollama's documents
    have it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def typed(request: Request) -> Response:
            kept = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            headers = [*kept, (b"content-type", b"application/json")]
            return await handler(Request({**request.scope, "headers": headers}, request.receive))

        return typed


class ModelRequest(WireShape):
    """A request that names a model, by `model` or, as old clients do, by `name`."""

    model: str = ""
    name: str = ""

    @property
    def model_name(self) -> str:
        """Raises InvalidInput."""
        name = (self.model or self.name).strip()
        if not name:
            raise InvalidInput("model is required")
        return name


DURATION = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+|[+-]?0")


def check_keep_alive(value: Any) -> float | str | None:
    """Seconds, or a duration of Go's as `5m`: models stay loaded here as their workers say. Raises
    ValueError."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and DURATION.fullmatch(value):
        return value
    raise ValueError('must be a number of seconds, or a duration such as "5m"')


def is_zero(keep_alive: float | str | None) -> bool:
    """Whether the model is to be unloaded."""
    if isinstance(keep_alive, str):
        return not re.search(r"[1-9]", keep_alive)
    return keep_alive is not None and keep_alive == 0


def moment(at: datetime | None = None) -> str:
    """As Go writes a time."""
    return (at or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nanoseconds(seconds: float) -> int:
    """At least one: a duration of 0 is not written, and clients divide by it."""
    return max(1, round(seconds * 1e9))


def line(body: Mapping[str, Any]) -> bytes:
    """A part of a stream."""
    return json_line(body).encode("utf-8", "backslashreplace") + b"\n"


Bodies = AsyncGenerator[Mapping[str, Any], None]


def streamed(frames: Bodies, headers: Mapping[str, str]) -> Response:
    """A line for each body as it comes; an error is the last of them."""
    return StreamedAnswer(
        _lines(frames),
        media_type="application/x-ndjson",
        failed=lambda problem: line(_body(problem)),
        headers=headers,
    )


def whole(frames: Bodies, headers: Mapping[str, str]) -> Response:
    """The one body that comes, or an error with its status. The client's going away ends it."""
    return StreamedAnswer(
        _lines(frames),
        media_type="application/json",
        failed=lambda problem: line(_body(problem)),
        headers=headers,
    )


async def _lines(frames: Bodies) -> AsyncGenerator[bytes, None]:
    try:
        async for body in frames:
            yield line(body)
    finally:
        await frames.aclose()
