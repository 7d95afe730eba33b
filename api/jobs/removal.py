"""Deletions: an `erase` job in the interactive lane that the caller waits for.

If it does not end in time, what it erases is hidden from readers at once, and the job goes on.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

from fastapi import Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.http import answers
from api.http.answers import answer
from api.jobs import streams
from shared.errors import NotFound
from shared.jobs import submission
from shared.jobs.submission import NewJob, Submitted
from shared.kinds import registry as kinds
from shared.kinds.erase import EraseInput
from shared.vocabulary import Lane

WAIT_S = 30.0


async def erase(
    parts: Parts,
    job_input: EraseInput,
    *,
    fair_key: str,
    preferences: Sequence[str] | None,
    require: Callable[[Session], None],
    hide: Callable[[Session], object],
) -> Response:
    """200 with the finished job, or 202 with a job that goes on. `require` raises NotFound."""
    asked_s = answers.wait_s(preferences, at_most=parts.settings.max_wait_s)
    if asked_s != 0:
        parts.news.check_room()
    new = NewJob(
        kind=kinds.ERASE,
        input=job_input.model_dump(mode="json"),
        fair_key=fair_key,
        lane=Lane.INTERACTIVE,
        max_attempts=parts.settings.max_attempts,
    )

    def add() -> Submitted:
        with parts.ledger.begin() as session:
            require(session)
            return submission.submit(session, new)

    def hide_now() -> None:
        # Not found: the job has ended since it was last looked at.
        with suppress(NotFound), parts.ledger.begin() as session:
            hide(session)

    made = await run_in_threadpool(add)
    ended = await streams.until_end(
        parts,
        made.id,
        wait_s=min(WAIT_S, parts.settings.max_wait_s) if asked_s is None else asked_s,
    )
    if not ended:
        await run_in_threadpool(hide_now)
    headers = {"Location": f"/v1/jobs/{made.id}"} | answers.applied(asked_s)
    view = await run_in_threadpool(streams.view, parts, made.id, fair_key)
    return answer(view, 200 if ended else 202, headers)
