"""Queues as operators and clients see them: how much waits and runs, paused or not, who works, and
at which place a step stands.

Pausing is a row in Postgres that claiming looks at; nothing is moved and nothing is lost.
"""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.database.transaction import ALIVE_FACTOR, HEARTBEAT_S, Transaction
from shared.jobs import steps
from shared.jobs.turns import HELD
from shared.redis.bell import Bell, list_of, queue_of
from shared.tables import Job, QueueState, Worker
from shared.vocabulary import OPEN, Queue, State

# Position and ETA of queued jobs, read from the ordering by which steps are claimed, and what
# a job waits for.
#
# If nothing new came and nothing ended, the claims of a lane would go through its keys by
# turns: the n-th queued step of a key with r running ones has turn r + n. Steps are taken by
# (lane, turn, key), so the steps ahead of one are those of better lanes, and of each other
# key as many as have a smaller turn. Better lanes change what is running, so that is followed
# from lane to lane.
#
# Reading costs the same however long a queue is. Of a queue of up to `EXACT_STEPS` steps the
# figures are exact and of this moment. A longer one is counted as a whole at most every
# `keep_s` seconds (`Depths`): its positions may be so old, and off by up to `MARK_EVERY`
# steps for each key.

RECENT_STEPS = 50
LATEST_STEPS = 500
"""Among how many of a queue the recent ones of a route are looked for."""
EXACT_STEPS = 1000
MARK_EVERY = 100
KEEP_FACTOR = 50
"""Counting a long queue takes at most this part of the time of one that looks."""

WORKER_OF: dict[str, str] = {Queue.HF: "hf", Queue.GENERATE: "generate"}
"""What `sluice worker` is told to start for a queue; `cpu` for the others."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`position` is the number of steps that are claimed before this one; `eta_s` in seconds.

    `waiting_for` says what the job waits for besides its turn.
    """

    position: int | None = None
    eta_s: float | None = None
    waiting_for: str | None = None


def estimate(
    session: Session,
    jobs: Sequence[Job],
    *,
    worker_heartbeat_s: float,
    depths: "Depths | None" = None,
) -> dict[UUID, Estimate]:
    """Estimates for those of the jobs that are open."""
    open_ = {job.id: job for job in jobs if job.state in OPEN}
    if not open_:
        return {}
    rows = session.execute(NEXT, {"ids": list(open_), "held": HELD}).all()
    estimates = {
        row.job_id: _of_running(open_[row.job_id], row.now)
        for row in rows
        if open_[row.job_id].state == State.RUNNING
    }
    # A running job waits only if none of its steps runs.
    waiting = [row for row in rows if row.id is not None and not row.is_running]
    if not waiting:
        return estimates
    living = _LivingWorkers.read(session, worker_heartbeat_s)
    paused = _paused(session, {row.queue for row in waiting})
    first = [row for row in waiting if row.due and open_[row.job_id].state == State.QUEUED]
    lines = _lines(session, first, living, depths or Depths())
    for row in waiting:
        job = open_[row.job_id]
        reason = _reason(row, job, paused=paused.get(row.queue), lacking=living.lacking(row))
        if job.state == State.RUNNING:
            estimates[job.id] = Estimate(eta_s=estimates[job.id].eta_s, waiting_for=reason)
        elif row.due:
            ahead, pace = lines[row.queue, row.route].ahead(row), lines[row.queue, row.route].pace_s
            eta = None if pace is None else round((ahead + 1) * pace, 1)
            estimates[job.id] = Estimate(position=ahead, eta_s=eta, waiting_for=reason)
        else:
            estimates[job.id] = Estimate(waiting_for=reason)
    return estimates


# The step of each job that comes next, and whether another one runs: two steps are read of each
# job, however many it has. Times are compared and written here: a row may hold one that Python has
# not.
NEXT = text("""
    SELECT j.id AS job_id, now() AS now, n.id, n.queue, n.route, n.lane, n.fair_key,
        n.run_after <= now() AS due, n.run_after = :held AS held, n.error ->> 'message' AS failure,
        CASE WHEN isfinite(n.run_after) THEN extract(epoch FROM n.run_after - now()) END AS in_s,
        CASE WHEN isfinite(n.run_after) THEN
            to_char(n.run_after AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') END AS due_at,
        EXISTS (SELECT FROM steps r WHERE r.job_id = j.id AND r.state = 'running') AS is_running
    FROM unnest(CAST(:ids AS uuid[])) j(id) LEFT JOIN LATERAL (
        SELECT * FROM steps s WHERE s.job_id = j.id AND s.state = 'queued' AND NOT s.after_end
        ORDER BY s.run_after LIMIT 1) n ON true
""")


def _of_running(job: Job, now: datetime) -> Estimate:
    """From the job's own pace since the first of it was done: what comes before, such as loading a
    model, comes once. From parts of units where no unit is done, as of a single large document."""
    if job.progress_total is None or job.started_at is None:
        return Estimate()
    left = job.progress_total - job.progress_done
    if job.paced_at is not None:
        paced_s = (now - job.paced_at).total_seconds()
        if (done := job.progress_done - (job.paced_done or 0)) > 0:
            return Estimate(eta_s=round(paced_s * left / done, 1))
        if not job.progress_done and (done := job.work_done - (job.paced_work or 0)) > 0:
            return Estimate(eta_s=round(paced_s * (job.work_total - job.work_done) / done, 1))
    if not job.progress_done:
        return Estimate()
    elapsed_s = (now - job.started_at).total_seconds()
    return Estimate(eta_s=round(elapsed_s * left / job.progress_done, 1))


def _reason(step: Any, job: Job, *, paused: str | None, lacking: str | None) -> str | None:
    """What keeps the step from running, in words that say what to do; None if only its turn."""
    if step.held:
        return "an earlier turn of the conversation"
    reasons = []
    if paused is not None:
        reasons.append(
            f"The queue {step.queue!r} is paused since {paused}; resume it with "
            f"`POST /v1/queues/{step.queue}/resume`."
        )
    if lacking is not None:
        reasons.append(lacking)
    # A row may hold an infinite time.
    in_s = "never" if step.in_s is None else f"in {max(0, round(step.in_s))} s"
    if step.failure is not None:
        again = "as soon as a worker is free" if step.due else in_s
        reasons.append(f"{step.failure} The next attempt begins {again}.")
    elif not step.due and (job.state == State.QUEUED or job.run_after is not None):
        # A step of a running job puts itself off between two looks, and waits for nothing.
        what = "run_after is" if job.run_after is not None else "the next attempt begins at"
        reasons.append(f"Its time has not come: {what} {step.due_at or 'infinity'}, {in_s}.")
    return " ".join(reasons) or None


def lacks_worker(model: str) -> str:
    """What is to be done about steps of a model that no living worker serves."""
    return (
        f"No living worker serves the model {model!r}; start one with "
        f"`sluice worker generate --model {model}`."
    )


def _paused(session: Session, queues: Iterable[str]) -> dict[str, str]:
    """Since when each of the queues is paused that are."""
    return {name: at for name, at in paused_since(session).items() if name in set(queues)}


def paused_since(session: Session) -> dict[str, str]:
    """The paused queues, each with the time since when, in ISO 8601."""
    at = func.to_char(func.timezone("UTC", QueueState.paused_at), 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    rows = session.execute(
        select(QueueState.name, at.label("at")).where(QueueState.paused_at.is_not(None))
    )
    return {row.name: row.at or "infinity" for row in rows}


def alive(worker_heartbeat_s: float) -> Any:
    """The condition under which a worker counts as living."""
    return Worker.last_seen_at > func.now() - timedelta(seconds=ALIVE_FACTOR * worker_heartbeat_s)


@dataclass(frozen=True, kw_only=True)
class _LivingWorkers:
    """How many steps the living workers run at the same time, by queue, and by queue and route."""

    of_queue: Counter[str]
    of_route: Counter[tuple[str, str]]

    @classmethod
    def read(cls, session: Session, worker_heartbeat_s: float) -> "_LivingWorkers":
        living = cls(of_queue=Counter(), of_route=Counter())
        for queues, routes, slots in session.execute(
            select(Worker.queues, Worker.routes, Worker.concurrency).where(
                alive(worker_heartbeat_s)
            )
        ):
            for queue in queues:
                living.of_queue[queue] += slots
                for route in routes:
                    living.of_route[queue, route] += slots
        return living

    def slots(self, queue: str, route: str) -> int:
        return self.of_route[queue, route] if route else self.of_queue[queue]

    def lacking(self, step: Any) -> str | None:
        """What is to be done where no living worker takes the step."""
        if self.slots(step.queue, step.route):
            return None
        if step.route:
            return lacks_worker(step.route)
        return (
            f"No living worker serves the queue {step.queue!r}; start one with "
            f"`sluice worker {WORKER_OF.get(step.queue, 'cpu')}`."
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
        rounds, position = self.running[key] + rank, self.position(key)
        total = rank
        for other, count in self.queued.items():
            if other != key:
                ties = self.position(other) < position
                total += min(count, max(0, rounds - self.running[other] + ties))
        return total

    def position(self, key: str) -> tuple[int, int]:
        """The order of keys that have as many running: a key that came to it by being served in
        this lane was served later than one that had so many all the time."""
        return -self.running[key], self.served.get(key, -1)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The steps that wait in one queue at one route."""

    lanes: dict[int, _Lane]
    rank: Callable[[Any], int]
    """How many due steps of the same lane and key are older than a step."""
    pace_s: float | None
    """Seconds between two steps that end."""

    def ahead(self, step: Any) -> int:
        better = (lane for number, lane in self.lanes.items() if number < step.lane)
        total = sum(sum(lane.queued.values()) for lane in better)
        own = self.lanes.get(step.lane)  # None: its steps were claimed this moment
        return total + (own.ahead(step.fair_key, self.rank(step)) if own else 0)


def _lines(
    session: Session, steps: Sequence[Any], living: _LivingWorkers, depths: "Depths"
) -> dict[tuple[str, str], _Line]:
    """The lines in which the due steps stand."""
    of_queue: dict[str, list[Any]] = {}
    for step in steps:
        of_queue.setdefault(step.queue, []).append(step)
    names = list(of_queue)
    long, running, served = (
        depths.of_long(session, names), _running(session, names), _served(session, names)
    )  # fmt: skip
    paces = _paces(session, {(step.queue, step.route) for step in steps}, living)
    lines: dict[tuple[str, str], _Line] = {}
    for queue, standing in of_queue.items():
        depth = long.get(queue) or _depth(
            session, queue, every=EXACT_STEPS, ids=[step.job_id for step in standing]
        )
        for route in {step.route for step in standing}:
            lines[queue, route] = _Line(
                lanes=_lanes(depth, route, running.get(queue, Counter()), served.get(queue, [])),
                rank=depth.rank,
                pace_s=paces.get((queue, route)),
            )
    return lines


def _running(session: Session, queues: Sequence[str]) -> dict[str, Counter[str]]:
    """How many steps of each key run, by queue."""
    running: dict[str, Counter[str]] = {}
    for queue, key, count in session.execute(
        text("""
            SELECT queue, fair_key, count(*) FROM steps
            WHERE queue = ANY(:queues) AND state = 'running' GROUP BY queue, fair_key
        """),
        {"queues": queues},
    ):
        running.setdefault(queue, Counter())[key] = count
    return running


def _served(session: Session, queues: Sequence[str]) -> dict[str, list[str]]:
    """The keys that were served in each queue, longest ago first."""
    served: dict[str, list[str]] = {}
    for queue, key in session.execute(
        text("""
            SELECT queue, fair_key FROM turns WHERE queue = ANY(:queues)
            ORDER BY served_at, fair_key
        """),
        {"queues": queues},
    ):
        served.setdefault(queue, []).append(key)
    return served


def _lanes(
    depth: "Depth", route: str, running: Counter[str], served: list[str]
) -> dict[int, _Lane]:
    """The lanes by number, from who has how many running, and who was served longest ago."""
    queued: dict[int, dict[str, int]] = {}
    keys: dict[str, None] = {}
    for (of_route, of_lane, key), marks in depth.groups.items():
        if of_route == route:
            queued.setdefault(of_lane, {})[key] = marks.count
            keys[key] = None
    last = set(served)
    order = [key for key in keys if key not in last] + served
    lanes: dict[int, _Lane] = {}
    for number, of_key in sorted(queued.items()):
        lane = _Lane(
            queued=of_key,
            running=running.copy(),
            served={key: position for position, key in enumerate(order)},
        )
        lanes[number] = lane
        running = running + Counter(of_key)
        # Who has most running at the end of the lane was served in its last round.
        latest = sorted(of_key, key=lambda key: (running[key], lane.position(key)))
        order = [key for key in order if key not in of_key] + latest
    return lanes


def _paces(
    session: Session, groups: Iterable[tuple[str, str]], living: _LivingWorkers
) -> dict[tuple[str, str], float]:
    """Seconds between two steps that end: mean duration of recent ones over all slots. None where
    nobody works, or nothing has ended."""
    worked = [group for group in groups if living.slots(*group)]
    if not worked:
        return {}
    rows = session.execute(
        text("""
            SELECT p.queue, p.route, r.mean_s
            FROM unnest(CAST(:queues AS text[]), CAST(:routes AS text[])) p(queue, route)
            CROSS JOIN LATERAL (
                SELECT extract(epoch FROM avg(finished_at - started_at)) AS mean_s FROM (
                    SELECT started_at, finished_at FROM (
                        SELECT started_at, finished_at, route FROM steps
                        WHERE queue = p.queue AND state = 'succeeded'
                          AND isfinite(started_at) AND isfinite(finished_at)
                        ORDER BY finished_at DESC LIMIT :looked_at) latest
                    WHERE route = p.route LIMIT :recent) recent) r
            WHERE r.mean_s IS NOT NULL
        """),
        {
            "queues": [queue for queue, _ in worked], "routes": [route for _, route in worked],
            "looked_at": LATEST_STEPS, "recent": RECENT_STEPS,
        },
    )  # fmt: skip
    return {(queue, route): float(s) / living.slots(queue, route) for queue, route, s in rows}


ClaimGroup = tuple[str, int, str]
"""Route, lane and key: of one group, the oldest step is claimed first."""


@dataclass(kw_only=True)
class _Marks:
    """Some steps of a group by their jobs' ids, oldest first, and how many are older than each."""

    ids: list[UUID] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    count: int = 0

    def rank(self, job_id: UUID) -> int:
        """How many are older than the job: between two marks, half as many as lie there."""
        n = bisect_right(self.ids, job_id)
        if n == 0:
            return 0
        if self.ids[n - 1] == job_id:
            return self.ranks[n - 1]
        after = self.ranks[n] if n < len(self.ranks) else self.count
        return min((self.ranks[n - 1] + 1 + after) // 2, self.count)


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The due steps of one queue."""

    groups: dict[ClaimGroup, _Marks]
    """In the order in which the database sorts their keys."""

    def rank(self, step: Any) -> int:
        marks = self.groups.get((step.route, step.lane, step.fair_key))
        return marks.rank(step.job_id) if marks else 0


# Sorted as the index `ix_steps_claim` is, so that the window is one walk along it; the marks of all
# groups are few. The last of each group tells how many there are.
MARKS = text("""
    SELECT route, lane, fair_key, job_id, rank, is_last FROM (
        SELECT route, lane, fair_key, job_id, row_number() OVER grouped - 1 AS rank,
            lead(id) OVER grouped IS NULL AS is_last
        FROM steps WHERE queue = :queue AND state = 'queued' AND run_after <= now()
        WINDOW grouped AS (PARTITION BY lane, fair_key, route ORDER BY job_id, id)) ranked
    WHERE is_last OR rank % :every = 0 OR job_id = ANY(CAST(:ids AS uuid[]))
    ORDER BY fair_key, lane, route, rank
""")
# In the order of the index `ix_steps_claim`, so that an empty queue among long ones is not looked
# for in all of the table. A row may hold a time that Python has not.
TOTALS = text("""
    SELECT q.queue, t.steps, t.oldest_s FROM unnest(CAST(:queues AS text[])) q(queue)
    CROSS JOIN LATERAL (
        SELECT count(*) AS steps,
            extract(epoch FROM now() - min(run_after) FILTER (WHERE run_after <= now())) AS oldest_s
        FROM (
            SELECT run_after FROM steps WHERE queue = q.queue AND state = 'queued'
            ORDER BY lane, fair_key, route, job_id, id LIMIT :up_to) s
    ) t
""")


def _depth(session: Session, queue: str, *, every: int, ids: Sequence[UUID] = ()) -> Depth:
    """The queue as it is now; with the exact ranks of the jobs `ids`, and of some others."""
    groups: dict[ClaimGroup, _Marks] = {}
    rows = session.execute(MARKS, {"queue": queue, "every": every, "ids": list(ids)})
    for route, lane, key, job_id, rank, is_last in rows:
        marks = groups.setdefault((route, lane, key), _Marks())
        marks.ids.append(job_id)
        marks.ranks.append(rank)
        if is_last:
            marks.count = rank + 1
    return Depth(groups=groups)


@dataclass(frozen=True, kw_only=True)
class Total:
    """How many steps wait in a queue, and for how long the oldest could have been claimed."""

    steps: int
    oldest_due_s: float


def _totals(session: Session, queues: Sequence[str], up_to: int | None) -> dict[str, Total]:
    """By queue; counting ends at `up_to` in each."""
    rows = session.execute(TOTALS, {"queues": queues, "up_to": up_to})
    return {
        row.queue: Total(steps=row.steps, oldest_due_s=max(0.0, float(row.oldest_s or 0.0)))
        for row in rows
    }


@dataclass(frozen=True, kw_only=True)
class _Count:
    """A whole queue as it was counted, and until when that is good enough."""

    depth: Depth
    total: Total
    until: float


class Depths:
    """Long queues, each counted as a whole at most every `keep_s` seconds.

    One thread counts while the others use what was counted before.
    """

    def __init__(self, *, keep_s: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._counts: dict[str, _Count] = {}
        self._locks = {queue.value: Lock() for queue in Queue}

    def of_long(self, session: Session, queues: Sequence[str]) -> dict[str, Depth]:
        """What waits in those of the queues that have more than `EXACT_STEPS` steps."""
        totals = _totals(session, queues, EXACT_STEPS + 1)
        return {
            queue: self._of(session, queue).depth
            for queue, total in totals.items()
            if total.steps > EXACT_STEPS
        }

    def totals(self, session: Session) -> dict[str, Total]:
        """Of all queues. Held turns, and steps whose time has not come, wait as well."""
        totals = _totals(session, [queue.value for queue in Queue], EXACT_STEPS + 1)
        return {
            queue: total if total.steps <= EXACT_STEPS else self._of(session, queue).total
            for queue, total in totals.items()
        }

    def _of(self, session: Session, queue: str) -> _Count:
        """The queue as it was counted lately."""
        kept = self._counts.get(queue)
        if kept is not None and self._clock() < kept.until:
            return kept
        lock = self._locks[queue]
        if not lock.acquire(blocking=kept is None):
            assert kept is not None
            return kept
        try:
            kept, begin = self._counts.get(queue), self._clock()
            if kept is not None and begin < kept.until:
                return kept
            depth = _depth(session, queue, every=MARK_EVERY)
            total = _totals(session, [queue], None)[queue]
            end = self._clock()
            until = end + max(self._keep_s, KEEP_FACTOR * (end - begin))
            self._counts[queue] = _Count(depth=depth, total=total, until=until)
            return self._counts[queue]
        finally:
            lock.release()


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
            ORDER BY lane, fair_key, route, job_id, id LIMIT :up_to) due
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
    session: Transaction, bell: Bell, queue: Queue, *, worker_heartbeat_s: float = HEARTBEAT_S
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
            session.ring(name, unrung)


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
            models=list(worker.routes),
            concurrency=worker.concurrency,
            started_at=worker.started_at,
            last_seen_at=worker.last_seen_at,
            alive=is_alive,
        )
        for worker, is_alive in rows
    ]


class Routes:
    """What workers serve that were seen lately, alive or not: read at most every `keep_s`."""

    def __init__(self, *, keep_s: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._routes: frozenset[str] = frozenset()
        self._until = float("-inf")

    def of_workers(self, session: Session) -> frozenset[str]:
        if self._clock() >= self._until:
            query = select(func.unnest(Worker.routes)).distinct()
            self._routes = frozenset(session.scalars(query))
            self._until = self._clock() + self._keep_s
        return self._routes


def _messages(session: Session, bell: Bell, worker_heartbeat_s: float) -> dict[Queue, int]:
    """By queue, with the lists of all routes that a living worker listens at."""
    routes = session.scalars(
        select(func.unnest(Worker.routes)).where(alive(worker_heartbeat_s)).distinct()
    )
    lists = [queue.value for queue in Queue] + [list_of(Queue.GENERATE, route) for route in routes]
    lengths = _lengths(bell, lists)
    if lengths is None:
        return {}
    counts: Counter[Queue] = Counter(dict.fromkeys(Queue, 0))
    for name, length in lengths.items():
        counts[queue_of(name)] += length
    return counts


def _lengths(bell: Bell, lists: list[str]) -> dict[str, int] | None:
    """How many messages wait in each list; None where Redis does not answer."""
    try:
        return bell.lengths(lists)
    except (RedisError, OSError):
        return None
