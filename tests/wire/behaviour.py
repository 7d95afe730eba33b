"""How a test server behaves, by model, and how it is run: in a thread of this process, or alone.

Faults are set on `Wire.behaviours[model]`, or over HTTP with `PUT /control/{model}` and the same
names as JSON. What was asked is in `Wire.requests`, or at `GET /control`.
"""

import argparse
import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(kw_only=True)
class Behaviour:
    """All is well by default. Chunks are counted from 0, before the chunk that is named."""

    delay_s: float = 0
    """The pause before each chunk."""
    hang: bool = False
    """No answer at all."""
    hang_after: int | None = None
    """The stream stops, and the connection stays."""
    break_after: int | None = None
    """The connection is closed."""
    error_after: int | None = None
    """The server reports an error in its stream, and ends it."""
    malformed_after: int | None = None
    """A line that is no JSON."""
    ends_without_marker: bool = False
    is_shattered: bool = False
    """Bytes come three at a time: characters are split."""
    refuse_times: int = 0
    """So many requests are answered with `refuse_status`."""
    refuse_status: int = 500
    refuse_message: str = "out of order"
    refuse_code: str | None = None
    retry_after: str | None = None
    location: str | None = None
    estimated_time_s: float | None = None
    """How long the hub says that it goes on loading the model."""
    rate_limit: str | None = None
    """The header of that name, as the hub has it: `"api";r=0;t=55`."""
    repeats_chars: int = 0
    """A model that goes on with a text begins with so much of what was there."""
    ignores_stop: bool = False
    reports_usage: bool = True
    vector: list[float] | None = None
    """The vector of every text; by default the vectors of `vector_of`."""
    lacks_vectors: int = 0
    """So many vectors are missing in each answer."""
    is_obliging: bool = False
    """The model calls the first tool that it is offered, and answers with JSON where it has to."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    path: str
    body: dict[str, Any]
    authorization: str | None = None


@dataclass(kw_only=True)
class Wire:
    """A running server."""

    url: str = ""
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    requests: list[Recorded] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: int = 0
    most_running: int = 0
    dropped: int = 0
    """Streams that clients left."""

    def of(self, model: str) -> Behaviour:
        return self.behaviours.setdefault(model, Behaviour())

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [request.body for request in self.requests if request.path == path]


DIMENSION = 8


def vector_of(text: str) -> list[float]:
    """A vector that depends on the words of a text, of any length but 0."""
    vector = [0.01] * DIMENSION
    for word in text.lower().split():
        vector[sum(word.encode()) % DIMENSION] += 3.0
    return vector


def vectors(wire: Wire, model: str, texts: list[str]) -> list[list[float]]:
    behaviour = wire.of(model)
    same = behaviour.vector
    made = [vector_of(text) if same is None else same for text in texts]
    return made[: len(made) - behaviour.lacks_vectors]


async def note(wire: Wire, request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(await request.body() or b"{}")
    wire.requests.append(
        Recorded(
            path=request.url.path, body=body, authorization=request.headers.get("authorization")
        )
    )
    return body


async def refusal(
    wire: Wire, request: Request, model: str, shape: Callable[[str, str | None], dict[str, Any]]
) -> Response | None:
    """The answer of a server that does not want to, or hangs; None if it serves the request."""
    behaviour = wire.of(model)
    if behaviour.hang:
        await _until_left(wire, request)
        return Response(status_code=499)
    if behaviour.refuse_times:
        behaviour.refuse_times -= 1
        headers = {"Retry-After": behaviour.retry_after} if behaviour.retry_after else {}
        headers |= {"Location": behaviour.location} if behaviour.location else {}
        return JSONResponse(
            shape(behaviour.refuse_message, behaviour.refuse_code),
            status_code=behaviour.refuse_status,
            headers=headers,
        )
    return None


def stream(
    wire: Wire,
    model: str,
    lines: Iterable[str],
    *,
    error: str,
    media_type: str,
) -> StreamingResponse:
    paced = _paced(wire, wire.of(model), lines, error)
    return StreamingResponse(paced, media_type=media_type)


async def _paced(
    wire: Wire, behaviour: Behaviour, lines: Iterable[str], error: str
) -> AsyncIterator[bytes]:
    wire.running += 1
    wire.most_running = max(wire.most_running, wire.running)
    try:
        for number, line in enumerate(lines):
            if behaviour.delay_s:
                await asyncio.sleep(behaviour.delay_s)
            if behaviour.hang_after == number:
                await asyncio.Event().wait()
            if behaviour.break_after == number:
                raise ConnectionError("broken on purpose")
            if behaviour.error_after == number:
                yield error.encode()
                return
            if behaviour.malformed_after == number:
                yield line[: len(line) // 2].encode() + b"\n\n"
            size = 3 if behaviour.is_shattered else len(line) * 4
            data = line.encode()
            for start in range(0, len(data), size):
                yield data[start : start + size]
    except asyncio.CancelledError:
        # Starlette ends a stream whose client has left.
        wire.dropped += 1
        raise
    finally:
        wire.running -= 1


async def _until_left(wire: Wire, request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.02)
    wire.dropped += 1


def application(wire: Wire, routes: list[Route]) -> Starlette:
    async def set_behaviour(request: Request) -> Response:
        fields = await request.json()
        wire.behaviours[request.path_params["model"]] = Behaviour(**fields)
        return Response(status_code=204)

    async def look(_: Request) -> Response:
        return JSONResponse(
            {
                "requests": [asdict(recorded) for recorded in wire.requests],
                "most_running": wire.most_running,
                "dropped": wire.dropped,
            }
        )

    control = [
        Route("/control", look),
        Route("/control/{model:path}", set_behaviour, methods=["PUT"]),
    ]
    return Starlette(routes=[*routes, *control])


@contextmanager
def serving(wire: Wire, app: Starlette) -> Iterator[Wire]:
    """Serve in a thread until the end of the block."""
    server = uvicorn.Server(_config(app, 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    wire.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.should_exit = True
        thread.join()


def run(app: Starlette) -> None:
    """The program: `--port N`, on the loopback, until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvicorn.Server(_config(app, parser.parse_args().port)).run()


def _config(app: Starlette, port: int) -> uvicorn.Config:
    # Connections that break on purpose are no news, so only what is critical is logged.
    return uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="critical", ws="none", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
