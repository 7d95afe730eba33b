"""The models of the Ollama server: pull, create, delete, list, show. This module has the step
`model.apply`.

All functions block. While the server works, `check` is called at least once a heartbeat; if it
raises, the connection is closed and the server stops.
"""

import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Final

import ollama
from ollama import ProgressResponse, ShowResponse

from shared.errors import Permanent
from shared.jobs import jobs
from shared.kinds import registry as kinds
from shared.kinds.model import ModelInput, ModelResult
from shared.models.providers import OLLAMA
from workers.attempts.context import Context, Done, Handler
from workers.outbound import broken_off
from workers.servers.ollama import OllamaServer, closable
from workers.servers.server import ModelMissing

OnProgress = Callable[[ProgressResponse], None]

_SUCCESS: Final = "success"
_NO_SUCH_MODEL: Final = ("file does not exist", "not found", "does not exist")


class _End:
    """Marks the end of a stream."""


def pull(
    server: OllamaServer, name: str, *, on_progress: OnProgress, check: Callable[[], None]
) -> None:
    """Let the server fetch a model. After an interruption, the next call continues."""

    def start() -> Awaitable[AsyncIterator[ProgressResponse]]:
        return server.client.pull(name, stream=True)

    try:
        _to_success(server, start, on_progress, check)
    except ollama.ResponseError as error:
        if any(words in error.error for words in _NO_SUCH_MODEL):
            raise Permanent(
                f"{server.info} cannot pull {name!r}: {error.error}. Look for its name at "
                "https://ollama.com/library."
            ) from error
        raise _as_our_error(server, error) from error


def create(
    server: OllamaServer,
    name: str,
    *,
    from_: str,
    system: str | None,
    template: str | None,
    parameters: Mapping[str, Any],
    on_progress: OnProgress,
    check: Callable[[], None],
) -> None:
    """Make a model from another one, as with a Modelfile."""

    def start() -> Awaitable[AsyncIterator[ProgressResponse]]:
        return server.client.create(
            name,
            from_=from_,
            system=system,
            template=template,
            parameters=dict(parameters) or None,
            stream=True,
        )

    try:
        _to_success(server, start, on_progress, check)
    except ollama.ResponseError as error:
        raise Permanent(
            f"{server.info} cannot create {name!r} from {from_!r}: {error.error}"
        ) from error


def delete(server: OllamaServer, name: str, *, check: Callable[[], None] = lambda: None) -> None:
    """Raises ModelMissing if there is no such model."""
    server.call(_delete(server, name), check=check)


def list_models(server: OllamaServer) -> list[str]:
    """The names of the server's models."""
    models = server.call(_list(server))
    return [model.model for model in models if model.model is not None]


def show(server: OllamaServer, name: str) -> ShowResponse:
    """Raises ModelMissing if there is no such model."""
    return server.call(_show(server, name))


# Coroutines, because the client is made at its first use, which has to be on the event loop.
async def _delete(server: OllamaServer, name: str) -> None:
    await server.client.delete(name)


async def _list(server: OllamaServer) -> Sequence[ollama.ListResponse.Model]:
    return (await server.client.list()).models


async def _show(server: OllamaServer, name: str) -> ShowResponse:
    return await server.client.show(name)


def _to_success(
    server: OllamaServer,
    start: Callable[[], Awaitable[AsyncIterator[ProgressResponse]]],
    on_progress: OnProgress,
    check: Callable[[], None],
) -> None:
    """Read a stream to its end. Raises ollama.ResponseError if the server reports a failure in
    it."""
    status: str | None = None
    for part in _parts(server, start, check):
        status = part.status
        on_progress(part)
    if status != _SUCCESS:
        raise broken_off(server.info, f"it ended with {status!r} instead of {_SUCCESS!r}")


def _parts(
    server: OllamaServer,
    start: Callable[[], Awaitable[AsyncIterator[ProgressResponse]]],
    check: Callable[[], None],
) -> Iterator[ProgressResponse]:
    """The parts of a stream, which is read on the event loop."""
    parts: queue.SimpleQueue[ProgressResponse | Exception | type[_End]] = queue.SimpleQueue()
    reading = server.spawn(_read(start, parts.put))
    try:
        while True:
            check()
            try:
                part = parts.get(timeout=server.settings.step_heartbeat_s)
            except queue.Empty:
                continue
            if isinstance(part, ollama.ResponseError):
                raise part
            if isinstance(part, Exception):
                raise _as_our_error(server, part) from part
            if isinstance(part, ProgressResponse):
                yield part
            else:
                return
    finally:
        reading.cancel()


async def _read(
    start: Callable[[], Awaitable[AsyncIterator[ProgressResponse]]],
    put: Callable[[ProgressResponse | Exception | type[_End]], None],
) -> None:
    try:
        async with aclosing(closable(await start())) as parts:
            async for part in parts:
                put(part)
        put(_End)
    except Exception as error:
        put(error)


def _as_our_error(server: OllamaServer, error: Exception) -> Exception:
    return server.translate_error(error, has_begun=False) or error


# The step `model.apply`: changes models on the Ollama server.
#
# It can be repeated: a pull continues, a creation replaces, and a model that an earlier attempt may
# have deleted may be missing.

UNIT: Final = "bytes"


def run(context: Context) -> Done:
    input_ = context.input(ModelInput)
    kinds.MODEL.check(input_, context.process.settings)
    with closing(OllamaServer(context.process.settings)) as server:
        _apply(context, server, input_)
    return Done(result=ModelResult(action=input_.action, name=input_.name).model_dump())


def _apply(context: Context, server: OllamaServer, input_: ModelInput) -> None:
    name = input_.name.removeprefix(OLLAMA.prefix)
    meter = _Meter(context)
    if input_.action == "delete":
        try:
            delete(server, name, check=context.check)
        except ModelMissing:
            if context.claim.attempt == 1:
                raise
        return
    if input_.action == "pull":
        pull(server, name, on_progress=meter.note, check=context.check)
    else:
        create(
            server,
            name,
            # `ModelInput` demands `from_` for a creation.
            from_=(input_.from_ or "").removeprefix(OLLAMA.prefix),
            system=input_.system,
            template=input_.template,
            parameters=input_.parameters,
            on_progress=meter.note,
            check=context.check,
        )
    meter.write()


class _Meter:
    """Adds up the progress of a model's layers, and stores the sum once a heartbeat."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._layers: dict[str, tuple[int, int]] = {}
        self._next_write = time.monotonic()

    def note(self, part: ProgressResponse) -> None:
        self._context.progress()
        if part.digest is None or part.total is None:
            return
        done, total = self._layers.get(part.digest, (0, 0))
        self._layers[part.digest] = (max(done, part.completed or 0), max(total, part.total))
        if time.monotonic() >= self._next_write:
            self.write()

    def write(self) -> None:
        if not self._layers:
            return
        done = sum(done for done, _ in self._layers.values())
        total = sum(total for _, total in self._layers.values())
        process = self._context.process
        with process.ledger.begin() as session:
            jobs.report(session, self._context.claim, done, total, UNIT)
        self._next_write = time.monotonic() + process.settings.step_heartbeat_s


APPLY = Handler(run=run)
