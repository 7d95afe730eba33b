"""Queues as operators see them: how much waits and runs, paused or not, and who works.

Pausing is a row in Postgres that claiming looks at; nothing is moved and nothing is lost.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from redis.exceptions import RedisError
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared import steps
from shared.estimates import alive
from shared.ledger import ring_after_commit
from shared.models import QueueState, Worker
from shared.queue import Bell, Queue, queue_of

RESUME_RINGS = 1000
"""Enough for all workers at once; the sweeper rings for the rest as these are used up."""


@dataclass(frozen=True, kw_only=True)
class QueueSummary:
    """Steps that wait and run; `messages` is what waits in Redis, None where that is down."""

    name: str
    queued: int
    running: int
    paused: bool
    messages: int | None


@dataclass(frozen=True, kw_only=True)
class WorkerSummary:
    name: str
    hostname: str
    pid: int
    queues: list[str]
    models: list[str]
    concurrency: int
    started_at: datetime
    last_seen_at: datetime
    alive: bool


def overview(session: Session, bell: Bell) -> list[QueueSummary]:
    """All queues, in the order of their definition."""
    counts = {
        (queue, state): count
        for queue, state, count in session.execute(
            text("""
                SELECT queue, state, count(*) FROM steps WHERE state IN ('queued', 'running')
                GROUP BY queue, state
            """)
        )
    }
    paused = set(session.scalars(select(QueueState.name).where(QueueState.paused_at.is_not(None))))
    messages = _messages(session, bell)
    return [
        QueueSummary(
            name=queue.value,
            queued=counts.get((queue.value, "queued"), 0),
            running=counts.get((queue.value, "running"), 0),
            paused=queue.value in paused,
            messages=messages.get(queue),
        )
        for queue in Queue
    ]


def count_queued(session: Session, queue: Queue, *, up_to: int) -> int:
    """How many steps wait in a queue; counting ends at `up_to`."""
    count: int = session.execute(
        text("""
            SELECT count(*) FROM
            (SELECT FROM steps WHERE queue = :queue AND state = 'queued' LIMIT :up_to) waiting
        """),
        {"queue": queue.value, "up_to": up_to},
    ).scalar_one()
    return count


def pause(session: Session, queue: Queue) -> None:
    """Let no step of the queue be claimed; running ones go on. Pausing twice is no error."""
    session.execute(
        insert(QueueState)
        .values(name=queue.value, paused_at=func.now())
        .on_conflict_do_update(
            index_elements=[QueueState.name],
            set_={"paused_at": func.coalesce(QueueState.paused_at, func.now())},
        )
    )


def resume(session: Session, bell: Bell, queue: Queue) -> None:
    """Let steps be claimed again, and ring for those that no message waits for."""
    session.execute(
        insert(QueueState)
        .values(name=queue.value, paused_at=None)
        .on_conflict_do_update(index_elements=[QueueState.name], set_={"paused_at": None})
    )
    for name, count in steps.runnable(session).items():
        if queue_of(name) == queue:
            unrung = count - _waiting(bell, name)
            if unrung > 0:
                ring_after_commit(session, name, min(unrung, RESUME_RINGS))


def workers(session: Session, *, worker_heartbeat_s: float) -> list[WorkerSummary]:
    """Workers that were seen lately, by name; `alive` as of now by the database's clock."""
    rows = session.execute(
        select(Worker, alive(worker_heartbeat_s).label("alive")).order_by(Worker.name)
    )
    return [
        WorkerSummary(
            name=worker.name,
            hostname=worker.hostname,
            pid=worker.pid,
            queues=list(worker.queues),
            models=list(worker.doors),
            concurrency=worker.concurrency,
            started_at=worker.started_at,
            last_seen_at=worker.last_seen_at,
            alive=is_alive,
        )
        for worker, is_alive in rows
    ]


def _messages(session: Session, bell: Bell) -> dict[Queue, int]:
    """By queue, with the lists of all doors that anybody waits at."""
    lists = {queue.value for queue in Queue} | set(steps.runnable(session))
    try:
        counts = [(queue_of(name), bell.waiting(name)) for name in lists]
    except (RedisError, OSError):
        return {}
    found: Counter[Queue] = Counter(dict.fromkeys(Queue, 0))
    for queue, count in counts:
        found[queue] += count
    return found


def _waiting(bell: Bell, name: str) -> int:
    try:
        return bell.waiting(name)
    except (RedisError, OSError):
        return 0
