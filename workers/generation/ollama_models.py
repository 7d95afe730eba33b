"""The models of the Ollama server: pull, create, delete, list, show; on demand, or by a job.

The step `model.apply` is here, and `on_demand`, with which a job has its missing model pulled.

All of it is for threads that can wait. `check` is called at least every heartbeat while a server
works, and ends the work by raising: the connection is closed, and the server stops.
"""

import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import wraps
from typing import Any, Final

import ollama
from ollama import ProgressResponse, ShowResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.errors import Permanent, Unavailable
from shared.jobs import jobs, submission
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.kinds.model import ModelInput, ModelResult
from shared.providers import OLLAMA
from shared.tables import Job
from shared.vocabulary import OPEN, Lane, State
from workers.attempts.context import Context, Done, Handler
from workers.generation.backends.interface import ModelMissing
from workers.generation.backends.ollama import OllamaServer, closable
from workers.outbound import broken_off

OnProgress = Callable[[ProgressResponse], None]

_SUCCESS: Final = "success"
_NO_SUCH_MODEL: Final = ("file does not exist", "not found", "does not exist")


class _End:
    """Behind the last part of a stream."""


def pull(
    server: OllamaServer, name: str, *, on_progress: OnProgress, check: Callable[[], None]
) -> None:
    """Have the server fetch the model. Interrupted, it goes on where it was the next time."""

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
        raise _known(server, error) from error


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
    """Make a model of another one, as a Modelfile does."""

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
    """Raises ModelMissing where there is none."""
    server.call(_delete(server, name), check=check)


def list_models(server: OllamaServer) -> list[str]:
    """Their names."""
    models = server.call(_list(server))
    return [model.model for model in models if model.model is not None]


def show(server: OllamaServer, name: str) -> ShowResponse:
    """Raises ModelMissing where there is none."""
    return server.call(_show(server, name))


# The client is made at its first use, which has to happen on the loop.
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
    """Raises ollama.ResponseError where the server reports in its stream that it failed."""
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
    """The parts of a stream on the loop, read in this thread."""
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
                raise _known(server, part) from part
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


def _known(server: OllamaServer, error: Exception) -> Exception:
    return server.translated(error, has_begun=False) or error


# The step `model.apply`: what a job of the kind `model` does at the Ollama server.
#
# Doing it again does no harm: a pull goes on where it was, a creation replaces, and a model
# that an earlier attempt may have deleted is allowed to be gone.

UNIT: Final = "bytes"


def run(context: Context) -> Done:
    input_ = context.input(ModelInput)
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
            # The shape lets no creation through without it.
            from_=(input_.from_ or "").removeprefix(OLLAMA.prefix),
            system=input_.system,
            template=input_.template,
            parameters=input_.parameters,
            on_progress=meter.note,
            check=context.check,
        )
    meter.write()


class _Meter:
    """Adds up the layers of a model, and writes the sum down once a heartbeat."""

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


# Models that are pulled when a job asks for them (SLUICE_OLLAMA_PULL), as a job of their own.
#
# The step that found its model missing waits, as for a server that does not answer; the pull is
# a job of kind `model` with its progress, which all steps that need the model wait for together.

LOOK_AGAIN_S = 2.0
LOCK = "pull a model"

RunStep = Callable[[Context], Done]


def on_demand(run: RunStep) -> RunStep:
    """Where the model is missing and may be pulled, the step waits for a pull."""

    @wraps(run)
    def running(context: Context) -> Done:
        try:
            return run(context)
        except ModelMissing as error:
            if not context.process.settings.ollama_pull:
                raise
            raise _awaited(context, error.reference) from error

    return running


def _awaited(context: Context, model: str) -> Exception:
    with context.process.ledger.begin() as session:
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(LOCK + model))))
        since = jobs.get(session, context.claim.job_id).created_at
        pull = _newest_pull(session, model)
        if pull is not None and pull.state == State.FAILED and pull.created_at > since:
            message = (pull.error or {}).get("message", "")
            return Permanent(f"{model} could not be pulled (job {pull.id}): {message}")
        pull_id = pull.id if pull is not None and pull.state in OPEN else None
        if pull_id is None:
            input_ = ModelInput(action="pull", name=model)
            new = NewJob(
                kind=kinds.MODEL,
                input=input_.model_dump(mode="json"),
                fair_key=context.claim.fair_key,
                lane=Lane.INTERACTIVE,
                max_attempts=context.claim.max_attempts,
            )
            pull_id = submission.submit(session, new).id
    return Unavailable(f"{model} is being pulled by the job {pull_id}.", retry_after_s=LOOK_AGAIN_S)


def _newest_pull(session: Session, model: str) -> Job | None:
    return session.scalars(
        select(Job)
        .where(
            Job.kind == kinds.MODEL.name,
            Job.input["name"].astext == model,
            Job.input["action"].astext == "pull",
        )
        .order_by(Job.id.desc())
        .limit(1)
    ).first()
