"""Calls of dialects as jobs: submitted, waited for or followed, cancelled where the client goes.

A call is a job like any other, in the lane `interactive`. One that nobody will come back for is
cancelled when its client goes away, or when it is not waited for any longer; a client that sent an
`Idempotency-Key` may come back, so its job goes on.
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
"""Clients of OpenAI's family repeat what failed with 409 and 5xx unless this forbids it: a job has
had its attempts."""
GONE = 499
"""The client has closed the connection; nobody reads this."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls; `http` is the request, whose body has been read."""

    http: Request
    fair_key: str
    idempotency_key: str | None = None

    @property
    def comes_back(self) -> bool:
        """Whether the job goes on without its client."""
        return self.idempotency_key is not None


async def _caller(
    http: Request, fair_key: FairKey, idempotency_key: IdempotencyKey = None
) -> Caller:
    return Caller(http=http, fair_key=fair_key, idempotency_key=idempotency_key)


CallerDep = Annotated[Caller, Depends(_caller)]


# From a call to a committed job.


def input_of(kind: Kind, values: Mapping[str, Any]) -> Any:
    """An input of the kind. Raises InvalidInput, which names the first wrong field by its path."""
    with naming_fields():
        return kind.input.model_validate(values)


@contextmanager
def naming_fields() -> Iterator[None]:
    """A ValidationError becomes an InvalidInput, which names the first wrong field by its path."""
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
    """`identity` is what differs where two calls do, by default the input. Raises InvalidInput for
    what this server cannot run."""
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
    """Commit the job of somebody who is to wait for it. Raises what `submission.submit` does, and
    Unavailable where too many wait.

    Where `is_waited`, `outcome` or `follow` has to come behind it: they let no answer out that
    names the job before it is on disk. The first text of a stream is there with it.
    """
    parts.followers.check_room()
    return await run_in_threadpool(submit_now, parts, new, is_waited=is_waited)


def submit_now(parts: Parts, new: NewJob, *, is_waited: bool = False) -> Submitted:
    """The same without a look at how many wait. Blocks: call it in a thread."""
    return submission.submit(parts.ledger, parts.admission, new, is_waited=is_waited)


def submit_upload(
    parts: Parts,
    file: IO[bytes],
    new: Callable[[File], NewJob],
    *,
    name: str,
    content_type: str | None,
) -> tuple[Submitted, File | None]:
    """The job of a call whose input is a file, and the upload that was made for it: None where the
    call came before. Blocks: call it in a thread."""
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
    """Blocks: call it in a thread."""
    try:
        with parts.ledger.begin() as session:
            stored = files.delete(session, upload.id)
    except NotFound:  # its owner was faster
        return
    forget(parts, stored)


def headers_of(made: Submitted) -> dict[str, str]:
    """Of every answer that stands for a job."""
    headers = {JOB_ID: str(made.id), "x-request-id": str(made.id)}
    return headers if made.is_new else headers | {"Idempotent-Replayed": "true"}


# How a job ended.


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """A job that has succeeded; `result` is whole, wherever it was stored. `headers` are those of
    the answer."""

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
        """As dialects have it: seconds since 1970."""
        return int(self.created_at.timestamp())


def outcome_of(parts: Parts, job: Job, headers: Mapping[str, str]) -> JobOutcome:
    """Of a job that has ended. Blocks. Raises ProblemError for one that did not succeed."""
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
    """Why a job that has ended did not succeed."""
    if job.state == State.CANCELLED:
        detail = f"Job {job.id} was cancelled. Send the request again."
        problem = Problem(status=503, detail=detail, code="Cancelled")
    else:
        problem = problem_of_job(job.error or {})
    return ProblemError(replace(problem, headers={**problem.headers, **headers, **NO_RETRY}))


def naming_model(error: ProblemError, model: str) -> ProblemError:
    """The same; where there is no such model, its name comes first."""
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


# What there is to know of a result, such as that a text was cut off, is in a header.

WARNING = "x-warning"
WARNINGS_SHOWN = 8
"""Clients take a hundred headers; the job has all warnings."""
WARNING_CHARS = 1000
PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def shown_warnings(warnings: Sequence[str], job_id: str) -> list[str]:
    """Values of headers; what ASCII does not have is percent-encoded."""
    shown = [_header_safe(warning) for warning in warnings[:WARNINGS_SHOWN]]
    if len(warnings) > WARNINGS_SHOWN:
        more = len(warnings) - WARNINGS_SHOWN
        shown.append(f"and {more} more: GET /v1/jobs/{job_id} has all")
    return shown


def warning_headers(warnings: Sequence[str], job_id: str) -> dict[str, str]:
    """All of them in one header, as HTTP allows."""
    return {WARNING: ", ".join(shown_warnings(warnings, job_id))} if warnings else {}


def _header_safe(text: str) -> str:
    short = text if len(text) <= WARNING_CHARS else f"{text[:WARNING_CHARS]} ..."
    return quote(short, safe=PRINTABLE)


# Waiting for a job's end.


async def run(parts: Parts, caller: Caller, new: NewJob) -> JobOutcome:
    """Submit the job and wait for its end. Raises ProblemError for one that did not succeed."""
    return await outcome(parts, caller, await submit(parts, new, is_waited=True))


async def outcome(
    parts: Parts, caller: Caller, made: Submitted, *, keeps_on: bool | None = None
) -> JobOutcome:
    """Wait for the job's end (see `when_ended`). Raises ProblemError for one that did not succeed,
    or not in time."""
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
    """What `read`, called in a thread with the job and the headers of its answer, makes of a job
    that has ended. Raises ProblemError for one that does not end in time.

    `meanwhile` is called at each update (see `waiting.until_end`). `keeps_on` says whether the job
    goes on where the client goes away or the time is up; by default, as the caller comes back.
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
        await run_in_threadpool(parts.ledger.flush)  # the error names the job
        raise ProblemError(_not_in_time(parts, made, headers, goes_on=goes_on))
    return await run_in_threadpool(_read_ended, parts, made.id, headers, read)


async def _until_end(
    parts: Parts, caller: Caller, made: Submitted, meanwhile: Callable[[], Any] | None
) -> bool:
    """False where the time is up, or the server stops. Raises ProblemError where the client has
    gone."""
    waiter = asyncio.ensure_future(
        waiting.until_end(
            parts,
            made.id,
            wait_s=parts.settings.compat_wait_s,
            meanwhile=meanwhile,
            is_new=made.is_new,
        )
    )
    watcher = asyncio.ensure_future(_until_gone(caller.http))
    try:
        await asyncio.wait({waiter, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not waiter.done():
            raise ProblemError(Problem(status=GONE, detail="The client has gone."))
        return waiter.result()
    finally:
        for task in (waiter, watcher):
            task.cancel()
        await asyncio.gather(waiter, watcher, return_exceptions=True)


async def _until_gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _read_ended(
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
    """Cancel a job that nobody waits for any more, also while the request is being torn down."""
    with anyio.CancelScope(shield=True):
        await run_in_threadpool(_cancel, parts, job_id)


def _cancel(parts: Parts, job_id: UUID) -> None:
    try:
        with suppress(NotFound), parts.ledger.begin() as session:
            jobs.cancel(session, job_id)
    except SQLAlchemyError as error:
        log.warning("job %s of a client that has gone was not cancelled: %s", job_id, error)


# Following a job while it writes.


@dataclass(frozen=True, kw_only=True)
class ToolNews:
    """A call of a tool that Sluice runs, and later its result (`shared/redis/events.py`)."""

    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is; `total` is None where nobody knows."""

    done: int
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Nothing has come for a while; where the job is in its queue, if it is."""

    position: int | None = None
    eta_s: float | None = None


News = TextPiece | ToolNews | Progress | Pause | JobOutcome


async def follow(
    parts: Parts, caller: Caller, made: Submitted, *, keeps_on: bool | None = None
) -> AsyncGenerator[News, None]:
    """What the job writes, as it comes, each character of each step once; at last its outcome.

    A `Pause` comes every `sse_heartbeat_s` in which nothing else does. Raises ProblemError where
    the job does not succeed. Close it: a job that is not followed to its end is cancelled, unless
    it `keeps_on`, as by default where the caller comes back.
    """
    goes_on = caller.comes_back if keeps_on is None else keeps_on
    has_ended = False
    try:
        async with aclosing(_news(parts, caller, made, goes_on=goes_on)) as news:
            async for item in news:
                has_ended = isinstance(item, JobOutcome)
                yield item
    finally:
        # Of a job that has ended otherwise this changes nothing.
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
                await run_in_threadpool(parts.ledger.flush)  # the error names the job
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
        except (ValueError, RecursionError):  # no part of Sluice has written it
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
    """Raises NotFound. A job that was redriven has an old `end` in its stream, and goes on."""
    with parts.ledger.read() as session:
        if jobs.state_of(session, job_id) not in ENDED:
            return None
        return jobs.get(session, job_id)


def _pause(parts: Parts, job_id: UUID, fair_key: str) -> Pause:
    parts.ledger.flush()  # the head of the answer, which names the job, goes out with it
    view = job_view(parts, job_id, fair_key)
    return Pause(position=view.position, eta_s=view.eta_s)


# Answers that are streams.

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class StreamedAnswer(StreamingResponse):
    """Frames as they come. The head of the answer is sent with the first of them: what goes wrong
    before is an error with its status, and what goes wrong later is the last frame.

    `failed` writes a problem as a frame. The client's going away closes `frames`.
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
            if not has_begun:  # there is nothing to say, as to a reader who has had it all
                await self._begin(send)
        except Exception as error:
            problem = problem_of(error)
            if not isinstance(error, ProblemError):
                log.exception("a stream broke off")
            if not has_begun:
                answer: Response = dialect_of(self._path).answer(problem)
                await answer(self._scope, self._receive, send)
                return
            body = self._failed(problem)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
