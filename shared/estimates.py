"""Position and ETA of queued jobs, read from the ordering by which steps are claimed.

If nothing new came, the claims of a lane would go through its keys by turns: the n-th queued step
of a key with r running ones has turn r + n. Steps are taken by (lane, turn, key), so the steps
ahead of one are those of better lanes, and of each other key as many as have a smaller turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.orm import Session

from shared.jobs import State
from shared.models import Job, Step, Worker

RECENT_STEPS = 50
ALIVE_FACTOR = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`position` is the number of steps that are claimed before this one; `eta_s` in seconds."""

    position: int | None = None
    eta_s: float | None = None


def estimate(
    session: Session, jobs: Sequence[Job], *, worker_heartbeat_s: float
) -> dict[UUID, Estimate]:
    """Estimates for those of the jobs that are open."""
    waiting = {job.id for job in jobs if job.state == State.QUEUED}
    steps = session.execute(
        select(Step.id, Step.job_id, Step.queue, Step.lane, Step.fair_key).where(
            Step.job_id.in_(waiting), Step.state == State.QUEUED, Step.run_after <= func.now()
        )
    ).all()
    queues: dict[str, _Queue] = {}
    found = {job.id: _of_running(job, session) for job in jobs if job.state == State.RUNNING}
    for step in steps:
        if step.queue not in queues:
            queues[step.queue] = _queue(session, step.queue, worker_heartbeat_s)
        queue = queues[step.queue]
        ahead = queue.ahead(step, _rank(session, step))
        pace = queue.seconds_per_step
        eta = None if pace is None else round((ahead + 1) * pace, 1)
        found[step.job_id] = Estimate(position=ahead, eta_s=eta)
    return found


@dataclass(frozen=True, kw_only=True)
class _Queue:
    queued: dict[tuple[int, str], int]
    running: dict[str, int]
    unserved_first: dict[str, int]
    seconds_per_step: float | None

    def ahead(self, step: Any, rank: int) -> int:
        own_turn = self.running.get(step.fair_key, 0) + rank
        total = rank
        for (lane, key), count in self.queued.items():
            if lane < step.lane:
                total += count
            elif lane == step.lane and key != step.fair_key:
                before = own_turn - self.running.get(key, 0)
                if self._order(key) < self._order(step.fair_key):
                    before += 1
                total += min(count, max(0, before))
        return total

    def _order(self, key: str) -> tuple[int, str]:
        return self.unserved_first.get(key, -1), key


def _queue(session: Session, name: str, worker_heartbeat_s: float) -> _Queue:
    queued = session.execute(
        text("""
            SELECT lane, fair_key, count(*) FROM steps
            WHERE queue = :queue AND state = 'queued' AND run_after <= now()
            GROUP BY lane, fair_key
        """),
        {"queue": name},
    )
    running = session.execute(
        text("""
            SELECT fair_key, count(*) FROM steps
            WHERE queue = :queue AND state = 'running' GROUP BY fair_key
        """),
        {"queue": name},
    )
    served = session.execute(
        text("SELECT fair_key FROM turns WHERE queue = :queue ORDER BY served_at"),
        {"queue": name},
    )
    return _Queue(
        queued={(lane, key): count for lane, key, count in queued},
        running=dict(running.all()),
        unserved_first={key: n for n, (key,) in enumerate(served)},
        seconds_per_step=_pace(session, name, worker_heartbeat_s),
    )


def _pace(session: Session, queue: str, worker_heartbeat_s: float) -> float | None:
    """Seconds between two steps that end: mean duration of recent ones over all slots."""
    mean_s = session.scalar(
        text("""
            SELECT extract(epoch FROM avg(finished_at - started_at)) FROM (
                SELECT started_at, finished_at FROM steps
                WHERE queue = :queue AND state = 'succeeded'
                ORDER BY finished_at DESC LIMIT :recent) recent
        """),
        {"queue": queue, "recent": RECENT_STEPS},
    )
    slots = session.scalar(
        select(func.sum(Worker.concurrency)).where(
            Worker.queues.contains([queue]),
            alive(worker_heartbeat_s),
        )
    )
    return float(mean_s) / slots if mean_s is not None and slots else None


def alive(worker_heartbeat_s: float) -> Any:
    """The condition under which a worker counts as living."""
    return Worker.last_seen_at > func.now() - timedelta(seconds=ALIVE_FACTOR * worker_heartbeat_s)


def _rank(session: Session, step: Any) -> int:
    """How many steps of the same lane and key are older."""
    count = session.scalar(
        select(func.count()).where(
            Step.queue == step.queue,
            Step.state == "queued",
            Step.lane == step.lane,
            Step.fair_key == step.fair_key,
            Step.run_after <= func.now(),
            tuple_(Step.job_id, Step.id) < tuple_(step.job_id, step.id),
        )
    )
    return count or 0


def _of_running(job: Job, session: Session) -> Estimate:
    """From the job's own progress so far, where it counts any."""
    if not job.progress_done or job.progress_total is None or job.started_at is None:
        return Estimate()
    elapsed_s = (session.execute(select(func.now())).scalar_one() - job.started_at).total_seconds()
    left = job.progress_total - job.progress_done
    return Estimate(eta_s=round(elapsed_s * left / job.progress_done, 1))
