"""Following a job while it runs, without a thread or a database connection held meanwhile.

News come from the job's Redis stream; the truth is looked up in Postgres when the stream says
that the job has ended, and every `sse_poll_s` while it says nothing. So both work, if slower,
while Redis is down or has lost everything. Reading starts at the stream's beginning, so nothing
that happened between submitting and reading is missed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.limits import release_body
from api.schemas import JobView
from shared import jobs, transcripts
from shared.estimates import Estimate, estimate
from shared.events import EventType, stream_key
from shared.states import OPEN
from shared.transcripts import Shown

START = "0-0"
READ_ENTRIES = 100
DOWN_POLL_S = 0.5
"""How often Postgres is asked where Redis does not answer."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of a stream; `data` is JSON as it was written."""

    id: str
    type: str
    data: str


async def read(parts: Parts, job_id: UUID, after: str, *, block_s: float) -> list[Entry] | None:
    """Entries after an id, waiting for the first; None where Redis does not answer."""
    try:
        answer: Any = await parts.redis.xread(
            {stream_key(job_id): after},
            count=READ_ENTRIES,
            block=max(1, int(block_s * 1000)) if block_s > 0 else None,
        )
    except (RedisError, OSError):
        return None
    return [
        Entry(id=id_, type=fields["type"], data=fields["data"])
        for _stream, rows in answer
        for id_, fields in rows
    ]


async def until_end(
    parts: Parts,
    job_id: UUID,
    *,
    wait_s: float,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> bool:
    """Wait for the job's end, for `wait_s` at most; whether it came. Raises NotFound.

    `meanwhile` is called at each news of the job, and every `sse_poll_s` without; it may raise.
    """
    release_body()
    deadline = time.monotonic() + wait_s
    poll_s = parts.settings.sse_poll_s
    after, looked_at = START, 0.0
    while True:
        left_s = deadline - time.monotonic()
        due = time.monotonic() - looked_at >= poll_s
        entries = await read(parts, job_id, after, block_s=0 if due else min(left_s, poll_s))
        if entries:
            after = entries[-1].id
        told = any(entry.type == EventType.END for entry in entries or ())
        if told or due or not entries:
            looked_at = time.monotonic()
            if await run_in_threadpool(has_ended, parts, job_id):
                return True
        if meanwhile is not None:
            await meanwhile()
        if time.monotonic() >= deadline or parts.stopping.is_set():
            return False
        if entries is None:
            await pause(parts)


async def pause(parts: Parts) -> None:
    """Between two looks at Postgres while Redis does not answer."""
    await asyncio.sleep(min(parts.settings.sse_poll_s, DOWN_POLL_S))


def shown_text(parts: Parts, job_id: UUID, *, step_id: int, offset: int) -> list[Shown]:
    """What the job has generated behind a place of its text."""
    with parts.ledger.read() as session:
        return transcripts.shown_of_job(session, job_id, step_id=step_id, offset=offset)


def has_ended(parts: Parts, job_id: UUID) -> bool:
    """Raises NotFound."""
    with parts.ledger.read() as session:
        return jobs.state_of(session, job_id) not in OPEN


def view(parts: Parts, job_id: UUID, fair_key: str) -> JobView:
    """The job as it is now, as the key may see it. Raises NotFound."""
    with parts.ledger.read() as session:
        job = jobs.get(session, job_id)
        found = estimate(
            session,
            [job],
            worker_heartbeat_s=parts.settings.worker_heartbeat_s,
            depths=parts.depths,
        )
    return JobView.of(job, found.get(job_id, Estimate()), fair_key)


def shows_text(parts: Parts, job_id: UUID, fair_key: str) -> bool:
    """Whether the key may read what the job generates. Raises NotFound."""
    with parts.ledger.read() as session:
        return not jobs.hides_text(jobs.get(session, job_id), fair_key)
