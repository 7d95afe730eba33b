"""Requests of dialects as jobs: submit, wait or follow, and cancel if the client disconnects.

The job of such a request is like any other, in the lane `interactive`. It is cancelled if the
client disconnects, or if the time to wait is over. A client that sent an `Idempotency-Key` may come
back, so its job goes on.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import IO, Annotated, Any, TypeVar
from urllib.parse import quote
from uuid import UUID

import anyio
from fastapi import Depends, Request
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.compat.dialect import Problem, ProblemError, dialect_of
from api.deps import FairKey, IdempotencyKey, Parts
from api.http.answers import job_view
from api.http.errors import field_of, problem_of, problem_of_job
from api.http.middleware import release_body
from api.jobs import submission, waiting
from api.jobs.following import START, Update
from api.jobs.texts import TextPiece, Unread
from api.routes.files import forget, keep
from api.schemas import REQUESTS
from shared import files
from shared.bounds import Unreadable
from shared.errors import InvalidInput, ModelNotFound, NotFound
from shared.jobs import jobs
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.kind import Kind
from shared.redis.events import EventType
from shared.tables import File, Job
from shared.vocabulary import ENDED, OPEN, Lane, Shape, State

log = logging.getLogger(__name__)

T = TypeVar("T")

JOB_ID = "x-sluice-job-id"
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients repeat requests that failed with 409 or 5xx unless this header forbids it. The
job has already used its attempts."""
CLIENT_CLOSED = 499
"""The status of a request whose client has closed the connection; nobody reads it."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who sent a request; `http` is the request, whose body has been read."""

    http: Request
    fair_key: str
    idempotency_key: str | None = None

    @property
    def comes_back(self) -> bool:
        """Whether the client may repeat the request later, so that its job must go on."""
        return self.idempotency_key is not None


async def _caller(
    http: Request, fair_key: FairKey, idempotency_key: IdempotencyKey = None
) -> Caller:
    return Caller(http=http, fair_key=fair_key, idempotency_key=idempotency_key)


CallerDep = Annotated[Caller, Depends(_caller)]


# Submitting


def input_of(kind: Kind, values: Mapping[str, Any]) -> Any:
    """Validate the input of a kind. Raises InvalidInput with the path of the first wrong field."""
    with naming_fields():
        return kind.input.model_validate(values)


@contextmanager
def naming_fields() -> Iterator[None]:
    """Turn a ValidationError into an InvalidInput with the path of the first wrong field."""
    try:
        yield
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        field = field_of(wrong)
        message = wrong["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{field}: {message}" if field else message) from error


def new_job(
    parts: Parts,
    caller: Caller,
    kind: Kind,
    job_input: Shape,
    *,
    identity: Any = None,
    lane: Lane = Lane.INTERACTIVE,
    metadata: Mapping[str, Any] | None = None,
) -> NewJob:
    """The job of a request. With an Idempotency-Key, requests are the same if their `identity` is,
    which by default is the input. Raises InvalidInput for input that this server cannot run."""
    request = REQUESTS[kind.name](kind=kind.name, input=job_input, metadata=dict(metadata or {}))
    path = caller.http.url.path
    body = [path, job_input.model_dump(mode="json") if identity is None else identity]
    return submission.new_job(
        request,
        parts.settings,
        fair_key=caller.fair_key,
        lane=lane,
        idempotency_key=caller.idempotency_key,
        body=body,
    )


async def submit(parts: Parts, new: NewJob, *, is_waited: bool = False) -> Submitted:
    """Commit the job of a client that will wait for it. Raises what `submission.submit` raises, and
    Unavailable if too many clients wait.

    With `is_waited`, the commit may not be on disk yet; then `outcome` or `follow` must be called
    next, which send no answer that names the job before it is.
    """
    parts.followers.check_room()
    return await run_in_threadpool(submit_now, parts, new, is_waited=is_waited)


def submit_now(parts: Parts, new: NewJob, *, is_waited: bool = False) -> Submitted:
    """As `submit`, without checking how many clients wait. Blocks: call it in a thread."""
    return submission.submit(parts.ledger, parts.admission, new, is_waited=is_waited)


def submit_upload(
    parts: Parts,
    file: IO[bytes],
    new: Callable[[File], NewJob],
    *,
    name: str,
    content_type: str | None,
) -> tuple[Submitted, File | None]:
    """Store a file and submit the job that `new` makes of it. Returns the job and the upload: None
    if the request is a repeated one. Blocks: call it in a thread."""
    upload = keep(parts, file, name=name, content_type=content_type)
    try:
        made = submit_now(parts, new(upload))
    except BaseException:
        forget_upload(parts, upload)
        raise
    if not made.is_new:
        forget_upload(parts, upload)
        return made, None
    return made, upload


def forget_upload(parts: Parts, upload: File) -> None:
    """Delete an upload. Blocks: call it in a thread."""
    try:
        with parts.ledger.begin() as session:
            stored = files.delete(session, upload.id)
    except NotFound:  # somebody has deleted it already
        return
    forget(parts, stored)


def headers_of(made: Submitted) -> dict[str, str]:
    """The headers of every answer that belongs to a job."""
    headers = {JOB_ID: str(made.id), "x-request-id": str(made.id)}
    return headers if made.is_new else headers | {"Idempotent-Replayed": "true"}


# Outcomes


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """A job that has succeeded, with its whole result, and the `headers` of the answer."""

    id: UUID
    input: Mapping[str, Any]
    result: Any
    warnings: Sequence[str]
    created_at: datetime
    headers: Mapping[str, str]
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def created_s(self) -> int:
        """Seconds since 1970."""
        return int(self.created_at.timestamp())


def outcome_of(parts: Parts, job: Job, headers: Mapping[str, str]) -> JobOutcome:
    """The outcome of a job that has ended. Blocks. Raises ProblemError if it did not succeed."""
    if job.state == State.SUCCEEDED:
        return JobOutcome(
            id=job.id,
            input=job.input,
            result=_result(parts, job),
            warnings=[str(warning) for warning in job.warnings],
            created_at=job.created_at,
            headers={**headers, **warning_headers(job.warnings, str(job.id))},
            started_at=job.started_at,
            finished_at=job.finished_at,
        )
    raise failure_of(job, headers)


def failure_of(job: Job, headers: Mapping[str, str]) -> ProblemError:
    """The error of a job that has ended without success."""
    if job.state == State.CANCELLED:
        detail = f"Job {job.id} was cancelled. Send the request again."
        problem = Problem(status=503, detail=detail, code="Cancelled")
    else:
        problem = problem_of_job(job.error or {})
    return ProblemError(replace(problem, headers={**problem.headers, **headers, **NO_RETRY}))


def naming_model(error: ProblemError, model: str) -> ProblemError:
    """The error; if the model does not exist, its message begins with the model's name."""
    if error.problem.code != ModelNotFound.code:
        return error
    detail = f"Model {model} does not exist. {error.problem.detail}"
    return ProblemError(replace(error.problem, detail=detail))


def _result(parts: Parts, job: Job) -> Any:
    if job.result_path is not None:
        return json.loads(b"".join(parts.storage.blocks(job.result_path)))
    if isinstance(job.result, Unreadable):
        detail = f"The result of job {job.id} cannot be read: {job.result.reason}."
        raise ProblemError(Problem(status=500, detail=detail))
    return job.result


# Warnings of a job, for example that a text was cut, are sent in a header.

WARNING = "x-warning"
WARNINGS_SHOWN = 8
"""HTTP clients limit the size of headers; the job has all warnings."""
WARNING_CHARS = 1000
PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def shown_warnings(warnings: Sequence[str], job_id: str) -> list[str]:
    """Warnings as values of headers: characters that are not ASCII are percent-encoded."""
    values = [_header_safe(warning) for warning in warnings[:WARNINGS_SHOWN]]
    if len(warnings) > WARNINGS_SHOWN:
        more = len(warnings) - WARNINGS_SHOWN
        values.append(f"and {more} more: GET /v1/jobs/{job_id} has all")
    return values


def warning_headers(warnings: Sequence[str], job_id: str) -> dict[str, str]:
    """All warnings in one header, as HTTP allows."""
    return {WARNING: ", ".join(shown_warnings(warnings, job_id))} if warnings else {}


def _header_safe(text: str) -> str:
    short = text if len(text) <= WARNING_CHARS else f"{text[:WARNING_CHARS]} ..."
    return quote(short, safe=PRINTABLE)


# Waiting for the end


async def run(parts: Parts, caller: Caller, new: NewJob) -> JobOutcome:
    """Submit a job and wait for its end. Raises ProblemError if it does not succeed."""
    return await outcome(parts, caller, await submit(parts, new, is_waited=True))


async def outcome(
    parts: Parts, caller: Caller, made: Submitted, *, keeps_on: bool | None = None
) -> JobOutcome:
    """Wait for the end of a job (see `when_ended`). Raises ProblemError if it does not succeed, or
    not in time."""
    return await when_ended(parts, caller, made, outcome_of, keeps_on=keeps_on)


async def when_ended(
    parts: Parts,
    caller: Caller,
    made: Submitted,
    read: Callable[[Parts, Job, Mapping[str, str]], T],
    *,
    meanwhile: Callable[[], Any] | None = None,
    keeps_on: bool | None = None,
) -> T:
    """Wait for the end of a job, then call `read` in a thread, with the job and the headers of the
    answer. Raises ProblemError if the job does not end in time.

    `meanwhile` is called at each update (see `waiting.until_end`). With `keeps_on` the job goes on
    if the client disconnects or the time is up; the default is `caller.comes_back`.
    """
    headers = headers_of(made)
    goes_on = caller.comes_back if keeps_on is None else keeps_on
    has_ended = False
    try:
        has_ended = await _until_end(parts, caller, made, meanwhile)
    finally:
        if not has_ended and not goes_on:
            await cancel(parts, made.id)
    if not has_ended:
        await run_in_threadpool(
            parts.ledger.flush
        )  # the error names the job, so it must be on disk
        raise ProblemError(_not_in_time(parts, made, headers, goes_on=goes_on))
    return await run_in_threadpool(_read_job, parts, made.id, headers, read)


async def _until_end(
    parts: Parts, caller: Caller, made: Submitted, meanwhile: Callable[[], Any] | None
) -> bool:
    """Returns False if the time is up or the server stops. Raises ProblemError if the client has
    disconnected."""
    end = asyncio.ensure_future(
        waiting.until_end(
            parts,
            made.id,
            wait_s=parts.settings.compat_wait_s,
            meanwhile=meanwhile,
            is_new=made.is_new,
        )
    )
    disconnect = asyncio.ensure_future(_until_disconnect(caller.http))
    try:
        await asyncio.wait({end, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not end.done():
            raise ProblemError(Problem(status=CLIENT_CLOSED, detail="The client has gone."))
        return end.result()
    finally:
        for task in (end, disconnect):
            task.cancel()
        await asyncio.gather(end, disconnect, return_exceptions=True)


async def _until_disconnect(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _read_job(
    parts: Parts,
    job_id: UUID,
    headers: Mapping[str, str],
    read: Callable[[Parts, Job, Mapping[str, str]], T],
) -> T:
    with parts.ledger.read() as session:
        job = jobs.get(session, job_id)
    return read(parts, job, headers)


def _not_in_time(
    parts: Parts, made: Submitted, headers: Mapping[str, str], *, goes_on: bool
) -> Problem:
    where = (
        f"The job {made.id} goes on: GET /v1/jobs/{made.id} tells of it."
        if goes_on
        else f"The job {made.id} was cancelled."
    )
    if parts.stopping.is_set():
        detail = f"The server is being stopped. {where}"
        return Problem(status=503, detail=detail, headers=headers)
    detail = (
        f"No answer within {parts.settings.compat_wait_s:g} s (SLUICE_COMPAT_WAIT_S). {where} "
        "A stream has no such limit; nor has POST /v1/jobs."
    )
    return Problem(status=504, detail=detail, headers={**headers, **NO_RETRY})


async def cancel(parts: Parts, job_id: UUID) -> None:
    """Cancel a job that nobody waits for, also while the task of the request is being cancelled."""
    with anyio.CancelScope(shield=True):
        await run_in_threadpool(_cancel, parts, job_id)


def _cancel(parts: Parts, job_id: UUID) -> None:
    try:
        with suppress(NotFound), parts.ledger.begin() as session:
            jobs.cancel(session, job_id)
    except SQLAlchemyError as error:
        log.warning("job %s of a client that has gone was not cancelled: %s", job_id, error)


# Following a job while it runs


@dataclass(frozen=True, kw_only=True)
class ToolNews:
    """A tool call that Sluice runs, or its result (`shared/redis/events.py`)."""

    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is; `total` is None if it is not known."""

    done: int
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Nothing has happened for a while. `position` and `eta_s` are set if the job is in its
    queue."""

    position: int | None = None
    eta_s: float | None = None


News = TextPiece | ToolNews | Progress | Pause | JobOutcome


async def follow(
    parts: Parts, caller: Caller, made: Submitted, *, keeps_on: bool | None = None
) -> AsyncGenerator[News, None]:
    """What a job writes while it runs, each character of each step once, and at last its outcome.

    A `Pause` comes after each `sse_heartbeat_s` without other news. Raises ProblemError if the job
    does not succeed. The caller has to close the generator: a job that is not followed to its end
    is cancelled unless `keeps_on`, whose default is `caller.comes_back`.
    """
    goes_on = caller.comes_back if keeps_on is None else keeps_on
    has_ended = False
    try:
        async with aclosing(_news(parts, caller, made, goes_on=goes_on)) as news:
            async for item in news:
                has_ended = isinstance(item, JobOutcome)
                yield item
    finally:
        # If the job has ended in another way, cancelling changes nothing.
        if not has_ended and not goes_on:
            await cancel(parts, made.id)


async def _news(
    parts: Parts, caller: Caller, made: Submitted, *, goes_on: bool
) -> AsyncGenerator[News, None]:
    release_body()
    headers = headers_of(made)
    settings = parts.settings
    poll_s = min(settings.sse_poll_s, settings.sse_heartbeat_s)
    unread = Unread(parts, made.id, is_new=made.is_new)
    shown_bytes: int | None = None
    sent_at = time.monotonic()
    with parts.followers.follow(made.id, START) as follower:
        may_have_ended = not made.is_new
        while True:
            if may_have_ended:
                with waiting.losses(made.id, is_new=made.is_new):
                    job = await run_in_threadpool(_job_if_ended, parts, made.id)
                if job is not None:
                    for piece in await unread.of_database():
                        yield piece
                    yield await run_in_threadpool(outcome_of, parts, job, headers)
                    return
            if parts.stopping.is_set():
                await run_in_threadpool(parts.ledger.flush)  # see `when_ended`
                raise ProblemError(_not_in_time(parts, made, headers, goes_on=goes_on))
            update = await follower.next(poll_s)
            news: list[TextPiece | ToolNews | Progress] = []
            if update is not None:
                news = await _of_update(unread, update)
                row = update.row
                if row is not None and row.shown_bytes != shown_bytes:
                    shown_bytes = row.shown_bytes
                    news += await unread.of_database()
            for item in news:
                yield item
            may_have_ended = update is not None and _is_end(update)
            if news:
                sent_at = time.monotonic()
            elif time.monotonic() - sent_at >= settings.sse_heartbeat_s:
                yield await run_in_threadpool(_pause, parts, made.id, caller.fair_key)
                sent_at = time.monotonic()


async def _of_update(unread: Unread, update: Update) -> list[TextPiece | ToolNews | Progress]:
    news: list[TextPiece | ToolNews | Progress] = []
    for entry in update.entries:
        if entry.type not in (EventType.TOKEN, EventType.TOOL, EventType.PROGRESS):
            continue
        try:
            data = json.loads(entry.data)
        except (ValueError, RecursionError):  # not written by Sluice
            continue
        if not isinstance(data, dict):
            continue
        if entry.type == EventType.TOKEN:
            news += await unread.of_token(data)
        elif entry.type == EventType.PROGRESS:
            news.append(Progress(done=int(data.get("done") or 0), total=data.get("total")))
        else:
            news.append(ToolNews(data=data))
    return news


def _is_end(update: Update) -> bool:
    return (
        update.is_gone
        or any(entry.type == EventType.END for entry in update.entries)
        or (update.row is not None and update.row.state not in OPEN)
    )


def _job_if_ended(parts: Parts, job_id: UUID) -> Job | None:
    """The job if it has ended, else None: the stream of a job that was redriven has an old `end`.
    Raises NotFound."""
    with parts.ledger.read() as session:
        if jobs.state_of(session, job_id) not in ENDED:
            return None
        return jobs.get(session, job_id)


def _pause(parts: Parts, job_id: UUID, fair_key: str) -> Pause:
    parts.ledger.flush()  # the headers, which name the job, are sent with this
    view = job_view(parts, job_id, fair_key)
    return Pause(position=view.position, eta_s=view.eta_s)


# Streamed answers

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class StreamedAnswer(StreamingResponse):
    """An answer of frames. The status and the headers are sent with the first frame, so an error
    before it has its own status; a later error becomes the last frame, which `failed` writes.

    If the client disconnects, `frames` is closed.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        failed: Callable[[Problem], bytes],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            frames, media_type=media_type, headers={**STREAM_HEADERS, **(headers or {})}
        )
        self._frames = frames
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._path = scope["path"]
        self._scope, self._receive = scope, receive
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._frames.aclose()

    async def _begin(self, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})

    async def stream_response(self, send: Send) -> None:
        has_begun = False
        try:
            async for frame in self._frames:
                if not has_begun:
                    await self._begin(send)
                    has_begun = True
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            if not has_begun:  # there are no frames, for example no new events
                await self._begin(send)
        except Exception as error:
            problem = problem_of(error)
            if not isinstance(error, ProblemError):
                log.exception("a stream has failed")
            if not has_begun:
                answer: Response = dialect_of(self._path).answer(problem)
                await answer(self._scope, self._receive, send)
                return
            body = self._failed(problem)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
