"""Position and ETA of queued jobs, read from the ordering by which steps are claimed.

If nothing new came and nothing ended, the claims of a lane would go through its keys by turns: the
n-th queued step of a key with r running ones has turn r + n. Steps are taken by (lane, turn, key),
so the steps ahead of one are those of better lanes, and of each other key as many as have a smaller
turn. Better lanes change what is running, so that is followed from lane to lane.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.orm import Session

from shared.conversations import HELD
from shared.models import Job, Step, Worker
from shared.states import State

RECENT_STEPS = 50
LATEST_STEPS = 500
"""Among how many of a queue the recent ones of a door are looked for."""
ALIVE_FACTOR = 3
FEW_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`position` is the number of steps that are claimed before this one; `eta_s` in seconds.

    `waiting_for` says what a step waits for that no worker can do anything about.
    """

    position: int | None = None
    eta_s: float | None = None
    waiting_for: str | None = None


def estimate(
    session: Session, jobs: Sequence[Job], *, worker_heartbeat_s: float
) -> dict[UUID, Estimate]:
    """Estimates for those of the jobs that are open."""
    waiting = {job.id for job in jobs if job.state == State.QUEUED}
    running = {job.id for job in jobs if job.state == State.RUNNING}
    rows = session.execute(
        select(
            Step.id, Step.job_id, Step.queue, Step.door, Step.lane, Step.fair_key, Step.run_after,
            (Step.run_after <= func.now()).label("due"),
        ).where(
            Step.state == State.QUEUED,
            # A running job, too, may wait for a model with its next step.
            Step.job_id.in_(waiting) | (Step.job_id.in_(running) & (Step.door != "")),
        )
    ).all()  # fmt: skip
    steps = [row for row in rows if row.due and row.job_id in waiting]
    queues: dict[tuple[str, str], _Queue] = {}
    ranks = _ranks(session, steps)
    found = {job.id: _of_running(job, session) for job in jobs if job.state == State.RUNNING}
    for row in rows:
        if row.run_after == HELD:
            found[row.job_id] = Estimate(waiting_for="an earlier turn of the conversation")
    for step in rows:
        if not step.due:
            continue
        place = (step.queue, step.door)
        if place not in queues:
            queues[place] = _queue(session, *place, worker_heartbeat_s)
        queue = queues[place]
        lacking = None if queue.is_served else lacks_worker(step.door)
        if step.job_id in running:
            found[step.job_id] = replace(found[step.job_id], waiting_for=lacking)
            continue
        ahead = queue.ahead(step, ranks[step.id])
        pace = queue.seconds_per_step
        eta = None if pace is None else round((ahead + 1) * pace, 1)
        found[step.job_id] = Estimate(position=ahead, eta_s=eta, waiting_for=lacking)
    return found


def lacks_worker(model: str) -> str:
    """What is to be done about steps of a model that no living worker serves."""
    return (
        f"No living worker serves the model {model!r}; start one with "
        f"`sluice worker generate --model {model}`."
    )


@dataclass(frozen=True, kw_only=True)
class _Lane:
    """A lane as it stands once the better ones are empty."""

    queued: dict[str, int]
    running: Counter[str]
    served: dict[str, int]
    """The place of each key in the order in which they were last served."""

    def ahead(self, key: str, rank: int) -> int:
        """How many steps of this lane are claimed before the step of this rank."""
        turn, place = self.running[key] + rank, self.place(key)
        total = rank
        for other, count in self.queued.items():
            if other != key:
                ties = self.place(other) < place
                total += min(count, max(0, turn - self.running[other] + ties))
        return total

    def place(self, key: str) -> tuple[int, int]:
        """The order of keys that have as many running: a key that came to it by being served in
        this lane was served later than one that had so many all the time."""
        return -self.running[key], self.served[key]


@dataclass(frozen=True, kw_only=True)
class _Queue:
    lanes: dict[int, _Lane]
    seconds_per_step: float | None
    is_served: bool
    """Whether any worker lives that takes these steps."""

    def ahead(self, step: Any, rank: int) -> int:
        better = (lane for number, lane in self.lanes.items() if number < step.lane)
        total = sum(sum(lane.queued.values()) for lane in better)
        own = self.lanes.get(step.lane)  # None or without the key: claimed this moment
        return total + (
            own.ahead(step.fair_key, rank) if own and step.fair_key in own.queued else 0
        )


def _queue(session: Session, name: str, door: str, worker_heartbeat_s: float) -> _Queue:
    queued: dict[int, dict[str, int]] = {}
    keys: dict[str, None] = {}
    # By key as the database sorts keys, which need not be as Python does.
    for lane, key, count in session.execute(
        text("""
            SELECT lane, fair_key, count(*) FROM steps
            WHERE queue = :queue AND door = :door AND state = 'queued' AND run_after <= now()
            GROUP BY lane, fair_key ORDER BY fair_key
        """),
        {"queue": name, "door": door},
    ):
        queued.setdefault(lane, {})[key] = count
        keys[key] = None
    running = session.execute(
        text("""
            SELECT fair_key, count(*) FROM steps
            WHERE queue = :queue AND state = 'running' GROUP BY fair_key
        """),
        {"queue": name},
    )
    served = session.scalars(
        text("SELECT fair_key FROM turns WHERE queue = :queue ORDER BY served_at, fair_key"),
        {"queue": name},
    )
    last = dict.fromkeys(served)
    order = [key for key in keys if key not in last] + list(last)
    slots = _slots(session, name, door, worker_heartbeat_s)
    return _Queue(
        lanes=_lanes(queued, Counter(dict(running.all())), order),
        seconds_per_step=_pace(session, name, door, slots),
        # Queues without doors: `readyz` tells of those that nobody serves.
        is_served=slots > 0 or not door,
    )


def _lanes(
    queued: dict[int, dict[str, int]], running: Counter[str], order: list[str]
) -> dict[int, _Lane]:
    """The lanes by number, from who has how many running, and who was served longest ago."""
    lanes: dict[int, _Lane] = {}
    for number, keys in sorted(queued.items()):
        lane = _Lane(
            queued=keys,
            running=running.copy(),
            served={key: n for n, key in enumerate(order)},
        )
        lanes[number] = lane
        running = running + Counter(keys)
        # Who has most running at the end of the lane was served in its last round.
        last = sorted(keys, key=lambda key: (running[key], lane.place(key)))
        order = [key for key in order if key not in keys] + last
    return lanes


def _pace(session: Session, queue: str, door: str, slots: int) -> float | None:
    """Seconds between two steps that end: mean duration of recent ones over all slots."""
    mean_s = session.scalar(
        text("""
            SELECT extract(epoch FROM avg(finished_at - started_at)) FROM (
                SELECT started_at, finished_at FROM (
                    SELECT started_at, finished_at, door FROM steps
                    WHERE queue = :queue AND state = 'succeeded'
                    ORDER BY finished_at DESC LIMIT :looked_at) latest
                WHERE door = :door LIMIT :recent) recent
        """),
        {"queue": queue, "door": door, "looked_at": LATEST_STEPS, "recent": RECENT_STEPS},
    )
    return float(mean_s) / slots if mean_s is not None and slots else None


def _slots(session: Session, queue: str, door: str, worker_heartbeat_s: float) -> int:
    """How many steps the living workers of a door run at the same time."""
    serving = [Worker.queues.contains([queue]), alive(worker_heartbeat_s)]
    if door:
        serving.append(Worker.doors.contains([door]))
    return session.scalar(select(func.sum(Worker.concurrency)).where(*serving)) or 0


def alive(worker_heartbeat_s: float) -> Any:
    """The condition under which a worker counts as living."""
    return Worker.last_seen_at > func.now() - timedelta(seconds=ALIVE_FACTOR * worker_heartbeat_s)


def _ranks(session: Session, steps: Sequence[Any]) -> dict[int, int]:
    """The rank of each step; many are ranked in one pass over their queues, a few one by one."""
    if len(steps) <= FEW_STEPS:
        return {step.id: _rank(session, step) for step in steps}
    rows = session.execute(
        text("""
            SELECT id, rank FROM (
                SELECT id, row_number() OVER (
                    PARTITION BY queue, door, lane, fair_key ORDER BY job_id, id) - 1 AS rank
                FROM steps
                WHERE queue = ANY(:queues) AND state = 'queued' AND run_after <= now()) ranked
            WHERE id = ANY(:ids)
        """),
        {"queues": list({s.queue for s in steps}), "ids": [s.id for s in steps]},
    )
    found = {row.id: row.rank for row in rows}
    # One that has been claimed meanwhile is no longer among them: it is next.
    return {step.id: found.get(step.id, 0) for step in steps}


def _rank(session: Session, step: Any) -> int:
    """How many steps of the same lane and key are older."""
    count = session.scalar(
        select(func.count()).where(
            Step.queue == step.queue,
            Step.door == step.door,
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
