"""Answers of requests that submit a job, at once or at its end: `Prefer: wait=N`, deletions,
requests of dialects.

Waiting holds neither a thread nor a database connection. Updates come from `api/jobs/following.py`;
if they say that the job has ended, Postgres is asked. So it also works, though slower, while Redis
is down or has lost everything. The stream is read from its beginning, so nothing is missed between
submitting and reading.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, TypeVar
from uuid import UUID

from fastapi import Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.http.answers import answer, job_view
from api.http.middleware import release_body
from api.jobs import submission
from api.jobs.following import START
from api.schemas import JobRequest, JobView
from shared.errors import NotFound, Unavailable
from shared.jobs import jobs
from shared.jobs import submission as ledger
from shared.jobs.submission import NewJob, Submitted
from shared.kinds import registry as kinds
from shared.kinds.erase import EraseInput
from shared.redis.events import EventType
from shared.vocabulary import OPEN, Lane

# The header `Prefer: wait=N` (RFC 7240): how long the answer may wait for the job's end.

WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)


def wait_of(prefer: Sequence[str] | None, *, at_most: float) -> float | None:
    """How many seconds to wait; None if the header does not ask for it.

    As the RFC says, a preference that cannot be parsed is ignored.
    """
    match = WAIT.search(",".join(prefer or ()))
    return min(float(match[1]), at_most) if match else None


def preference_header(seconds: float | None) -> dict[str, str]:
    """The header of the answer if the preference was preference_header."""
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds:g}"}


T = TypeVar("T")
LOST_RETRY_AFTER_S = 1


async def until_end(
    parts: Parts,
    job_id: UUID,
    *,
    wait_s: float,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    is_new: bool = False,
) -> bool:
    """Wait at most `wait_s` for the job's end. Returns whether it has ended. Raises NotFound, or
    Unavailable if the job `is_new`.

    `meanwhile` is called at each update of the job, and after each `sse_poll_s` without one; it may
    raise. The row of a job that `is_new` is not read before there is an update.
    """
    has_ended = partial(_has_ended, parts, job_id)
    ended = await _when_ended(
        parts, job_id, has_ended, wait_s=wait_s, meanwhile=meanwhile, is_new=is_new
    )
    return ended is not None


async def _when_ended(
    parts: Parts,
    job_id: UUID,
    look: Callable[[], T | None],
    *,
    wait_s: float,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    is_new: bool,
) -> T | None:
    """Wait for the job's end as `until_end`. Returns what `look`, which is called in a thread and
    reads Postgres, returns for the ended job; before the end it has to return None."""
    release_body()
    deadline = time.monotonic() + wait_s
    poll_s = parts.settings.sse_poll_s
    with parts.followers.follow(job_id, START) as follower:
        may_have_ended = not is_new
        while True:
            if may_have_ended:
                with losses(job_id, is_new=is_new):
                    result = await run_in_threadpool(look)
                if result is not None:
                    return result
            if meanwhile is not None:
                await meanwhile()
            left_s = deadline - time.monotonic()
            if left_s <= 0 or parts.stopping.is_set():
                return None
            update = await follower.next(min(left_s, poll_s))
            may_have_ended = update is not None and (
                any(entry.type == EventType.END for entry in update.entries)
                or update.is_gone
                or (update.row is not None and update.row.state not in OPEN)
            )


@contextmanager
def losses(job_id: UUID, *, is_new: bool) -> Iterator[None]:
    """Turn NotFound into Unavailable if the job `is_new`: its commit did not wait for the disk, so
    the database may have lost it in a crash, and no answer has named it yet."""
    try:
        yield
    except NotFound as error:
        if not is_new:
            raise
        raise Unavailable(
            f"Job {job_id} is gone: the database has just lost it in a crash, or somebody has "
            "erased it. Send the request again.",
            retry_after_s=LOST_RETRY_AFTER_S,
        ) from error


def _has_ended(parts: Parts, job_id: UUID) -> Literal[True] | None:
    """Raises NotFound."""
    with parts.ledger.read_single() as session:
        return True if jobs.state_of(session, job_id) not in OPEN else None


async def answer_when_ended(
    parts: Parts, made: Submitted, fair_key: str, wait_s: float, headers: Mapping[str, str]
) -> Response:
    """200 with the finished job if it ends in time, otherwise 202 with the job.

    The commit of the job may not be on disk yet.
    """

    def look() -> JobView | None:
        view = job_view(parts, made.id, fair_key)
        return None if view.state in OPEN else view

    ended = await _when_ended(parts, made.id, look, wait_s=wait_s, is_new=made.is_new)
    if ended is not None:
        return answer(ended, 200, headers)
    await run_in_threadpool(parts.ledger.flush)
    return answer(await run_in_threadpool(job_view, parts, made.id, fair_key), 202, headers)


async def submit(
    parts: Parts,
    request: JobRequest,
    *,
    fair_key: str,
    preferences: Sequence[str] | None,
    idempotency_key: str | None,
    body: Any = None,
) -> Response:
    """Submit a job, and answer 202 with it; 200 with the finished one if the preferences say so and
    it ends in time. Requests with one key are the same if their `body` is; without one, if the
    jobs are. Raises what `submission.new_job` and `submission.submit` raise, and Unavailable if too
    many clients wait.
    """
    wait_s = wait_of(preferences, at_most=parts.settings.max_wait_s)
    if wait_s:
        parts.followers.check_room()
    if body is None and idempotency_key is not None:
        body = request.model_dump(mode="json", exclude_unset=True)
    new = submission.new_job(
        request,
        parts.settings,
        fair_key=fair_key,
        lane=Lane.NORMAL if wait_s is None else Lane.INTERACTIVE,
        idempotency_key=idempotency_key,
        body=body,
    )
    commit = partial(submission.submit, is_waited=bool(wait_s))
    made = await run_in_threadpool(commit, parts.ledger, parts.admission, new)
    headers = _headers(made, wait_s)
    if wait_s is not None:
        return await answer_when_ended(parts, made, fair_key, wait_s, headers)
    if made.is_new:
        return answer(submission.view_of_new(new, made), 202, headers)
    return answer(await run_in_threadpool(job_view, parts, made.id, fair_key), 202, headers)


def _headers(made: Submitted, wait_s: float | None) -> dict[str, str]:
    replayed = {} if made.is_new else {"Idempotent-Replayed": "true"}
    return {"Location": f"/v1/jobs/{made.id}"} | preference_header(wait_s) | replayed


ERASURE_WAIT_S = 30.0


async def erase(
    parts: Parts,
    job_input: EraseInput,
    *,
    fair_key: str,
    preferences: Sequence[str] | None,
    idempotency_key: str | None = None,
    require: Callable[[Session], None],
    hide: Callable[[Session], object],
) -> Response:
    """Submit an `erase` job and wait for it: 200 with the finished job, or 202 if it goes on. A
    request that is sent again with its key gets the same job, also when all is erased.

    If it does not end in time, `hide` makes the data invisible to readers at once. `require` raises
    NotFound if there is nothing to erase.
    """
    preferred_s = wait_of(preferences, at_most=parts.settings.max_wait_s)
    if preferred_s != 0:
        parts.followers.check_room()
    new = NewJob(
        kind=kinds.ERASE,
        input=job_input.model_dump(mode="json"),
        fair_key=fair_key,
        lane=Lane.INTERACTIVE,
        max_attempts=parts.settings.max_attempts,
        idempotency_key=idempotency_key,
    )

    def add() -> Submitted:
        with parts.ledger.begin() as session:
            replayed = ledger.find_replayed(session, new)
            if replayed is not None:
                return replayed
            require(session)
            return ledger.submit(session, new)

    def hide_now() -> None:
        # NotFound means that the job has ended meanwhile.
        with suppress(NotFound), parts.ledger.begin() as session:
            hide(session)

    made = await run_in_threadpool(add)
    at_most_s = min(ERASURE_WAIT_S, parts.settings.max_wait_s)
    wait_s = at_most_s if preferred_s is None else preferred_s
    ended = await until_end(parts, made.id, wait_s=wait_s, is_new=made.is_new)
    if not ended:
        await run_in_threadpool(hide_now)
    headers = _headers(made, preferred_s)
    view = await run_in_threadpool(job_view, parts, made.id, fair_key)
    return answer(view, 200 if ended else 202, headers)
