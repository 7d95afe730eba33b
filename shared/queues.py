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
from shared.estimates import Depths, alive, paused_since
from shared.ledger import HEARTBEAT_S, ring_after_commit
from shared.models import QueueState, Worker
from shared.queue import Bell, Queue, list_of, queue_of

RESUME_RINGS = 1000
"""Enough for all workers at once; the sweeper rings for the rest as these are used up."""


@dataclass(frozen=True, kw_only=True)
class QueueSummary:
    """Steps that wait and run; `messages` is what waits in Redis, None where that is down.

    Of a queue of more than `estimates.EXACT_STEPS` steps `queued` may be some seconds old.
    """

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


def overview(
    session: Session,
    bell: Bell,
    *,
    worker_heartbeat_s: float = HEARTBEAT_S,
    depths: Depths | None = None,
) -> list[QueueSummary]:
    """All queues, in the order of their definition."""
    waiting = (depths or Depths()).totals(session)
    running = running_steps(session)
    paused = paused_since(session)
    messages = _messages(session, bell, worker_heartbeat_s)
    return [
        QueueSummary(
            name=queue.value,
            queued=waiting[queue.value].steps,
            running=running[queue.value],
            paused=queue.value in paused,
            messages=messages.get(queue),
        )
        for queue in Queue
    ]


def running_steps(session: Session) -> Counter[str]:
    """How many steps of each queue run: as many as workers have hands."""
    rows = session.execute(
        text("SELECT queue, count(*) AS steps FROM steps WHERE state = 'running' GROUP BY queue")
    )
    return Counter({row.queue: row.steps for row in rows})


def count_due(session: Session, queue: Queue, *, up_to: int, fair_key: str | None = None) -> int:
    """How many steps of a queue, or of a key in it, could be claimed now; counting ends at `up_to`.

    Turns that are held and jobs whose time has not come are none of them.
    """
    of_key = "" if fair_key is None else "AND lane IN (0, 1, 2) AND fair_key = :fair_key"
    count: int = session.execute(
        text(f"""
            SELECT count(*) FROM (SELECT FROM steps
            WHERE queue = :queue AND state = 'queued' AND run_after <= now() {of_key}
            ORDER BY lane, fair_key, door, job_id, id LIMIT :up_to) due
        """),
        {"queue": queue.value, "up_to": up_to, "fair_key": fair_key},
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


def resume(
    session: Session, bell: Bell, queue: Queue, *, worker_heartbeat_s: float = HEARTBEAT_S
) -> None:
    """Let steps be claimed again, and ring for those that no message waits for."""
    session.execute(
        insert(QueueState)
        .values(name=queue.value, paused_at=None)
        .on_conflict_do_update(index_elements=[QueueState.name], set_={"paused_at": None})
    )
    runnable = steps.runnable(session, worker_heartbeat_s=worker_heartbeat_s, up_to=RESUME_RINGS)
    waiting = _lengths(bell, list(runnable)) or {}
    for name, count in runnable.items():
        unrung = count - waiting.get(name, 0)
        if queue_of(name) == queue and unrung > 0:
            ring_after_commit(session, name, unrung)


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


def _messages(session: Session, bell: Bell, worker_heartbeat_s: float) -> dict[Queue, int]:
    """By queue, with the lists of all doors that a living worker listens at."""
    doors = session.scalars(
        select(func.unnest(Worker.doors)).where(alive(worker_heartbeat_s)).distinct()
    )
    lists = [queue.value for queue in Queue] + [list_of(Queue.GENERATE, door) for door in doors]
    lengths = _lengths(bell, lists)
    if lengths is None:
        return {}
    found: Counter[Queue] = Counter(dict.fromkeys(Queue, 0))
    for name, length in lengths.items():
        found[queue_of(name)] += length
    return found


def _lengths(bell: Bell, lists: list[str]) -> dict[str, int] | None:
    """How many messages wait in each list; None where Redis does not answer."""
    try:
        return bell.lengths(lists)
    except (RedisError, OSError):
        return None
