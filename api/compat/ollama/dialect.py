"""The dialect of Ollama: its record, its errors, and what its requests and answers share.

Follows `api/types.go`, `server/routes.go` and `docs/api.md` of github.com/ollama/ollama, August
2026. Clients find it by `OLLAMA_HOST=http://<host>:<port>/ollama`. Bodies are read as JSON whatever
their content type is (`curl -d`), streams have one line of JSON for each part, durations are
nanoseconds.
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
"""The version of Ollama whose API this is."""


PLACE = re.compile(r"(?:body: )?(?:input\.(?=parameters|messages|model))?(?:parameters\.)?")
"""The beginning of the paths of fields in our inputs, which requests of this dialect do not
have."""


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
    # Ollama answers 400 to everything that is wrong with the content of a request.
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
    """A route that reads its body as JSON: the examples of Ollama's documents (`curl -d`) send no
    content type of JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            headers = [*others, (b"content-type", b"application/json")]
            return await handler(Request({**request.scope, "headers": headers}, request.receive))

        return handle


class ModelRequest(WireShape):
    """A request that names a model, by `model` or, in old clients, by `name`."""

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
    """Check a number of seconds or a duration of Go such as `5m`. Raises ValueError."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and DURATION.fullmatch(value):
        return value
    raise ValueError('must be a number of seconds, or a duration such as "5m"')


def is_zero(keep_alive: float | str | None) -> bool:
    """Whether `keep_alive` asks to unload the model."""
    if isinstance(keep_alive, str):
        return not re.search(r"[1-9]", keep_alive)
    return keep_alive is not None and keep_alive == 0


def moment(at: datetime | None = None) -> str:
    """A time as Go writes it, by default the present."""
    return (at or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nanoseconds(seconds: float) -> int:
    """At least 1, because Ollama leaves out durations of 0, and clients divide by them."""
    return max(1, round(seconds * 1e9))


def line(body: Mapping[str, Any]) -> bytes:
    """A body as a line of a stream."""
    return json_line(body).encode("utf-8", "backslashreplace") + b"\n"


Bodies = AsyncGenerator[Mapping[str, Any], None]


def stream_answer(frames: Bodies, headers: Mapping[str, str]) -> Response:
    """A stream with a line for each body; an error is the last line."""
    return StreamedAnswer(
        _lines(frames),
        media_type="application/x-ndjson",
        failed=lambda problem: line(_body(problem)),
        headers=headers,
    )


def single_answer(frames: Bodies, headers: Mapping[str, str]) -> Response:
    """The only body of `frames`, or an error with its status. If the client disconnects, `frames`
    is closed."""
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
