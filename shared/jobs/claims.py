"""Claiming: the best runnable step of a queue, and those that can share its batch.

Claiming raises the attempt number and sets a lease before any work starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database.transaction import Transaction
from shared.kinds.registry import step_types
from shared.redis.events import EventType
from shared.vocabulary import State


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A running attempt of a step; (`step_id`, `attempt`) is the fencing token."""

    step_id: int
    job_id: UUID
    name: str
    queue: str
    kind: str
    lane: int
    fair_key: str
    payload: dict[str, Any]
    batch_key: str | None = None
    attempt: int
    max_attempts: int
    error_before: dict[str, Any] | None = None
    """Why the attempt before this one is tried again."""
    free_attempts: int = 0
    """How many attempts before this one are not counted."""
    input: Any = None
    """The job's input, where it is small; None where it has to be read from its row."""
    has_company: bool = False
    """Whether other steps of its batch key were queued."""
    is_line: bool = False
    """Whether the job is a line of a batch, of which no events are published: nobody follows
    thousands, and each would take memory of Redis. Readers look into Postgres for it."""

    @property
    def counted_attempt(self) -> int:
        """The attempt as users see it; never more than the job's `max_attempts`."""
        return self.attempt - self.free_attempts


# What is `picked` runs from now on, and its job with it. Attempts that are not counted have raised
# the step's `max_attempts` beyond the job's; the job's attempt, which users see, is without them.
# Sums are made in 64 bits: a row with a count at the end of its range must not stop its queue.
# An input comes along unless it is stored apart from its row, and would have to be fetched.
CLAIM_PICKED = """), claimed AS (
    UPDATE steps SET state = 'running', attempt = least(attempt, 2147483646) + 1, worker = :worker,
        started_at = now(), lease_until = now() + make_interval(secs => :lease_s)
    FROM picked WHERE steps.id = picked.id
    RETURNING steps.*
), started AS (
    UPDATE jobs SET state = 'running', started_at = coalesce(jobs.started_at, now()),
        attempt = greatest(jobs.attempt, least(
            CAST(c.attempt AS bigint) - c.max_attempts + jobs.max_attempts, jobs.max_attempts)),
        queue = c.queue,
        deadline_at = coalesce(deadline_at, now() + make_interval(
            secs => CASE WHEN timeout_s BETWEEN 0 AND 1e9 THEN timeout_s END))
    FROM claimed c
    WHERE jobs.id = c.job_id AND NOT c.after_end
      AND (jobs.state = 'queued' OR jobs.queue <> c.queue
           OR jobs.attempt < CAST(c.attempt AS bigint) - c.max_attempts + jobs.max_attempts)
    RETURNING jobs.id
)"""
COLUMNS = """
SELECT c.id, c.job_id, c.name, c.queue, c.lane, c.fair_key, c.payload, c.batch_key, c.attempt,
    c.max_attempts, c.error, j.kind, j.state AS job_state, j.batch_id IS NOT NULL AS is_line,
    CAST(c.max_attempts AS bigint) - j.max_attempts AS free_attempts,
    CASE WHEN pg_column_size(j.input) < 2000 THEN j.input END AS input"""

# The commit of a claim waits for the disk, but for steps that only compute.
_UNFLUSHED = ", ".join(f"'{step.name}'" for step in step_types() if step.only_computes)
DURABILITY = f""", set_config('synchronous_commit', CASE WHEN c.name IN ({_UNFLUSHED}) THEN 'off'
        ELSE current_setting('synchronous_commit') END, true)"""

# The best runnable step of a queue: lane, then fair share between keys (fewest running, then
# longest unserved), then age. `present` is a loose index scan over (lane, key), and `heads` looks
# at the worker's own routes alone: a claim costs the same with ten queued steps as with a million,
# and whatever other models they name. Steps that were due when they were made and steps that were
# put off have an index each, so that no claim walks over those whose time has not come. The row is
# locked last, in the order of `turns`, which is why that is materialized. That the key was served
# is noted as far as it can be: fair share's memory must not make claims wait for each other.
CLAIM = text(
    """
WITH RECURSIVE present AS (
    (SELECT lane, fair_key FROM steps WHERE queue = :queue AND state = 'queued'
     ORDER BY lane, fair_key LIMIT 1)
    UNION ALL
    SELECT n.lane, n.fair_key FROM present p CROSS JOIN LATERAL (
        SELECT s.lane, s.fair_key FROM steps s
        WHERE s.queue = :queue AND s.state = 'queued'
          AND (s.lane, s.fair_key) > (p.lane, p.fair_key)
        ORDER BY s.lane, s.fair_key LIMIT 1) n
), heads AS (
    SELECT p.lane, p.fair_key, d.route, s.job_id, s.put_off
    FROM present p CROSS JOIN unnest(CAST(:routes AS text[])) d(route) CROSS JOIN LATERAL (
        (SELECT job_id, false AS put_off FROM steps
         WHERE queue = :queue AND state = 'queued' AND lane = p.lane AND fair_key = p.fair_key
           AND route = d.route AND run_after <= created_at
         ORDER BY job_id LIMIT 1)
        UNION ALL
        (SELECT job_id, true FROM steps
         WHERE queue = :queue AND state = 'queued' AND lane = p.lane AND fair_key = p.fair_key
           AND route = d.route AND run_after > created_at AND run_after <= now()
         ORDER BY run_after, job_id LIMIT 1)) s
), busy AS (
    SELECT fair_key, count(*) AS running FROM steps
    WHERE queue = :queue AND state = 'running' GROUP BY fair_key
), ordered AS MATERIALIZED (
    SELECT h.lane, h.fair_key, h.route, h.put_off FROM heads h
    LEFT JOIN busy b ON b.fair_key = h.fair_key
    LEFT JOIN turns t ON t.queue = :queue AND t.fair_key = h.fair_key
    WHERE NOT EXISTS (SELECT FROM queues WHERE name = :queue AND paused_at IS NOT NULL)
    ORDER BY h.lane, coalesce(b.running, 0), t.served_at NULLS FIRST, h.fair_key, h.job_id
), picked AS MATERIALIZED (
    SELECT s.id FROM ordered o CROSS JOIN LATERAL (
        SELECT id FROM (
            SELECT id FROM steps
            WHERE queue = :queue AND state = 'queued' AND lane = o.lane AND fair_key = o.fair_key
              AND route = o.route AND run_after <= created_at AND NOT o.put_off
            ORDER BY job_id, id LIMIT 1
            FOR UPDATE SKIP LOCKED) at_once
        UNION ALL
        SELECT id FROM (
            SELECT id FROM steps
            WHERE queue = :queue AND state = 'queued' AND lane = o.lane AND fair_key = o.fair_key
              AND route = o.route AND run_after > created_at AND run_after <= now() AND o.put_off
            ORDER BY run_after, job_id, id LIMIT 1
            FOR UPDATE SKIP LOCKED) put_off) s
    LIMIT 1
"""
    + CLAIM_PICKED
    + """, turn AS MATERIALIZED (
    SELECT t.queue, t.fair_key FROM claimed c
    JOIN turns t ON t.queue = c.queue AND t.fair_key = c.fair_key
    FOR UPDATE OF t SKIP LOCKED
), served AS (
    UPDATE turns t SET served_at = clock_timestamp() FROM turn
    WHERE t.queue = turn.queue AND t.fair_key = turn.fair_key
), first_served AS (
    INSERT INTO turns (queue, fair_key, served_at)
    SELECT c.queue, c.fair_key, clock_timestamp() FROM claimed c
    WHERE NOT EXISTS (SELECT FROM turns t WHERE t.queue = c.queue AND t.fair_key = c.fair_key)
    ON CONFLICT DO NOTHING
)"""
    + COLUMNS
    + """, company.waits IS NOT NULL AS has_company"""
    + DURABILITY
    + """
FROM claimed c JOIN jobs j ON j.id = c.job_id LEFT JOIN LATERAL (
    SELECT true AS waits FROM steps o
    WHERE o.queue = c.queue AND o.batch_key = c.batch_key AND o.state = 'queued' AND o.id <> c.id
    ORDER BY o.lane, o.job_id, o.id  -- by the index, of however many the planner thinks they are
    LIMIT 1) company ON true
"""
)

IS_BEHIND = text("""
    SELECT EXISTS (SELECT FROM steps WHERE queue = :queue AND state = 'queued' AND lane < :lane
                   AND run_after <= now())
""")


def is_behind(session: Session, claim: Claim) -> bool:
    """Whether a step of a better lane waits in the queue of this one, which runs."""
    parameters = {"queue": claim.queue, "lane": claim.lane}
    return bool(session.scalar(IS_BEHIND, parameters))


FEW_STEPS = 16
"""Not worth sharing between processes: halves of halves would be no batches any more."""

# Steps that failed before, or whose worker died, run alone: they must not take others with them.
# Jobs that somebody else has locked are left out, so that no two of these wait for each other.
COMPANIONS = text(
    """
WITH picked AS MATERIALIZED (
    SELECT s.id FROM steps s JOIN jobs j ON j.id = s.job_id
    WHERE s.queue = :queue AND s.batch_key = :batch_key AND s.state = 'queued'
      AND s.run_after <= now() AND s.error IS NULL AND s.route = ANY(:routes)
    ORDER BY s.lane, s.job_id, s.id
    LIMIT least(:limit, (SELECT greatest(:few, ceil((count(*) + 1.0) / :shared_by)) - 1 FROM (
        SELECT FROM steps WHERE queue = :queue AND batch_key = :batch_key AND state = 'queued'
        LIMIT :limit * :shared_by) waiting))
    FOR NO KEY UPDATE OF s, j SKIP LOCKED
"""
    + CLAIM_PICKED
    + COLUMNS
    + """, false AS has_company
FROM claimed c JOIN jobs j ON j.id = c.job_id
ORDER BY c.lane, c.job_id, c.id
"""
)


def claim(
    session: Transaction, queue: str, *, worker: str, lease_s: float, routes: Sequence[str] = ()
) -> Claim | None:
    """Take the best runnable step of the queue for `lease_s` seconds, or None. One statement.

    Steps that only some workers can run are taken by those that have their route.
    """
    values = {"queue": queue, "worker": worker, "lease_s": lease_s, "routes": ["", *routes]}
    row = session.execute(CLAIM, values).first()
    return None if row is None else _claimed(session, row)


def claim_companions(
    session: Transaction,
    first: Claim,
    *,
    worker: str,
    lease_s: float,
    limit: int,
    shared_by: int = 1,
    routes: Sequence[str] = (),
) -> list[Claim]:
    """Take up to `limit` more steps that can run in one batch with the one just claimed; of few, no
    more than one process' share where `shared_by` are at it.

    They are of its queue and batch key, of whatever lane and fair key: they ride along for little.
    """
    if limit < 1 or first.batch_key is None or first.error_before is not None:
        return []
    values = {
        "queue": first.queue, "batch_key": first.batch_key, "worker": worker,
        "lease_s": lease_s, "routes": ["", *routes], "limit": limit,
        "shared_by": shared_by, "few": FEW_STEPS,
    }  # fmt: skip
    return [_claimed(session, row) for row in session.execute(COMPANIONS, values)]


def _claimed(session: Transaction, row: Any) -> Claim:
    if row.job_state == State.QUEUED and not row.is_line:
        session.publish(row.job_id, EventType.STATE, {"state": State.RUNNING.value})
    return Claim(
        step_id=row.id, job_id=row.job_id, name=row.name, queue=row.queue, kind=row.kind,
        lane=row.lane, fair_key=row.fair_key, payload=row.payload, batch_key=row.batch_key,
        attempt=row.attempt, max_attempts=row.max_attempts, error_before=row.error,
        free_attempts=row.free_attempts, input=row.input, has_company=row.has_company,
        is_line=row.is_line,
    )  # fmt: skip
