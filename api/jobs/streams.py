"""Following a job while it runs, without a thread or a database connection held meanwhile.

News come from `api/jobs/news.py`; the truth is looked up in Postgres when they say that the job has
ended. So both work, if slower, while Redis is down or has lost everything. Reading starts at the
stream's beginning, so nothing that happened between submitting and reading is missed.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy.orm import load_only
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.http.limits import release_body
from api.jobs.news import READ_ENTRIES, Entry
from api.schemas import JobView
from shared import conversations
from shared.conversations import Shown
from shared.errors import NotFound
from shared.jobs import jobs
from shared.jobs.jobs import Contents
from shared.jobs.queues import Estimate, estimate
from shared.redis.events import EventType, stream_key
from shared.tables import Job
from shared.vocabulary import OPEN, State, known

START = "0-0"


async def read(parts: Parts, job_id: UUID, after: str) -> list[Entry]:
    """Entries after an id that are there; none where Redis does not answer."""
    try:
        answer: Any = await parts.redis.xread({stream_key(job_id): after}, count=READ_ENTRIES)
    except (RedisError, OSError):
        return []
    return [Entry.of(id_, fields) for _stream, rows in answer or () for id_, fields in rows]


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
    with parts.news.follow(job_id, START) as follower:
        may_have_ended = True
        while True:
            if may_have_ended and await run_in_threadpool(has_ended, parts, job_id):
                return True
            if meanwhile is not None:
                await meanwhile()
            left_s = deadline - time.monotonic()
            if left_s <= 0 or parts.stopping.is_set():
                return False
            word = await follower.next(min(left_s, poll_s))
            may_have_ended = word is not None and (
                any(entry.type == EventType.END for entry in word.entries)
                or word.is_gone
                or (word.row is not None and word.row.state not in OPEN)
            )


def shown_text(parts: Parts, job_id: UUID, *, step_id: int, offset: int) -> list[Shown]:
    """What the job has generated behind a place of its text."""
    with parts.ledger.read() as session:
        return conversations.shown_of_job(session, job_id, step_id=step_id, offset=offset)


def has_ended(parts: Parts, job_id: UUID) -> bool:
    """Raises NotFound."""
    with parts.ledger.read() as session:
        return jobs.state_of(session, job_id) not in OPEN


def view(parts: Parts, job_id: UUID, fair_key: str, *, is_whole: bool = False) -> JobView:
    """The job as it is now, as the key may see it. Raises NotFound.

    Unless it is to be whole, an input as large as no result may be in it is left out: events and
    answers to those who wait are small.
    """
    limit_bytes = parts.settings.result_inline_bytes
    with parts.ledger.read() as session:
        if is_whole:
            job, contents = jobs.get(session, job_id), None
        else:
            job = jobs.without_contents(session, job_id)
            small = jobs.contents(session, [job_id], limit_bytes=limit_bytes)
            contents = small.get(job_id, Contents())
        estimates = estimate(
            session,
            [job],
            worker_heartbeat_s=parts.settings.worker_heartbeat_s,
            depths=parts.depths,
        )
    return JobView.of(job, estimates.get(job_id, Estimate()), fair_key, contents)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a stream has to know of its job: not what may be large."""

    id: UUID
    kind: str
    state: State
    progress: dict[str, Any]
    finished_at: datetime | None
    shows_text: bool
    """Whether the key may read what the job generates."""


def outline(parts: Parts, job_id: UUID, fair_key: str) -> Outline:
    """Raises NotFound."""
    columns = (
        Job.id, Job.kind, Job.state, Job.progress_done, Job.progress_total, Job.progress_unit,
        Job.finished_at, Job.private, Job.fair_key,
    )  # fmt: skip
    with parts.ledger.read() as session:
        job = session.get(Job, job_id, options=[load_only(*columns, raiseload=True)])
        if job is None:
            raise NotFound(f"There is no job {job_id}.")
        return Outline(
            id=job.id,
            kind=job.kind,
            state=known(job.state),
            progress={
                "done": job.progress_done,
                "total": job.progress_total,
                "unit": job.progress_unit,
            },
            finished_at=job.finished_at,
            shows_text=not jobs.hides_text(job, fair_key),
        )
