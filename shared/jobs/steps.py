"""Steps: heartbeat, record, recover.

Claiming raises the attempt number before any work starts. Every later write names that attempt
and changes nothing if it is no longer the running one; such a write is logged and answered with
False, so that a worker that lost its lease cannot undo what its successor did.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, cast, func, insert, or_, select, text, update
from sqlalchemy.orm import Session

from shared.bounds import INT32_MAX, YEAR_S, EncodedJson
from shared.database.transaction import ALIVE_FACTOR, HEARTBEAT_S, Transaction
from shared.jobs import jobs
from shared.jobs.claims import Claim
from shared.redis.bell import list_of
from shared.redis.events import EventType
from shared.tables import Job, Step
from shared.vocabulary import Queue, State

log = logging.getLogger(__name__)

Record = Callable[[Transaction], None]
"""Writes what an attempt has to write, inside the transaction that records it."""
Finish = Callable[[Transaction, UUID], Any]
"""Computes a job's result when its last step has succeeded, inside that transaction."""


@dataclass(frozen=True, kw_only=True)
class NewStep:
    name: str
    queue: Queue
    route: str = ""
    batch_key: str | None = None
    payload: dict[str, Any] = field(default_factory=dict)


class Lease(StrEnum):
    """What a heartbeat learns."""

    GO_ON = "go on"
    STOP = "stop"
    LOST = "lost"


# Rows are locked in the order of their ids, as by all that lock several running steps.
EXTEND = text("""
    WITH mine AS (
        SELECT s.id FROM steps s
        JOIN unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[])) m(id, attempt)
          ON s.id = m.id AND s.attempt = m.attempt AND s.state = 'running'
        ORDER BY s.id FOR NO KEY UPDATE OF s)
    UPDATE steps SET lease_until = now() + make_interval(secs => :lease_s)
    FROM mine WHERE steps.id = mine.id
""")
ENDINGS = text("""
    SELECT s.id, j.ending FROM steps s
    JOIN unnest(CAST(:ids AS bigint[]), CAST(:attempts AS int[])) m(id, attempt)
      ON s.id = m.id AND s.attempt = m.attempt AND s.state = 'running'
    JOIN jobs j ON j.id = s.job_id
""")


def heartbeats(
    session: Session, claims: Sequence[Claim], *, lease_s: float, extend: Sequence[Claim]
) -> list[Lease]:
    """Extend the leases of `extend`, and learn of each of `claims` whether to go on."""
    if extend:
        session.execute(EXTEND, _tokens(extend) | {"lease_s": lease_s})
    endings = {row.id: row.ending for row in session.execute(ENDINGS, _tokens(claims))}
    return [
        Lease.LOST
        if claim.step_id not in endings
        else (Lease.GO_ON if endings[claim.step_id] is None else Lease.STOP)
        for claim in claims
    ]


def _tokens(claims: Sequence[Claim]) -> dict[str, Any]:
    return {
        "ids": [claim.step_id for claim in claims],
        "attempts": [claim.attempt for claim in claims],
    }


def hold(session: Session, claim: Claim) -> bool:
    """Whether the attempt still runs; if so, it cannot be taken away before the commit."""
    held = session.execute(
        select(Step.id).where(*_is_running(claim)).with_for_update(read=True)
    ).first()
    return held is not None or _no_op(claim, "hold")


def succeed(
    session: Transaction,
    claim: Claim,
    *,
    result: Any = None,
    children: Iterable[NewStep] = (),
    record: Record | None = None,
    finish: Finish | None = None,
) -> bool:
    """Record a success: what `record` writes, the next steps, and the job's end if it was last.

    A step that has no successor and no `finish` gives its own result to the job.
    """
    if not _leave_running(session, claim, State.SUCCEEDED, result=result, error=None):
        return _no_op(claim, "succeed")
    if record is not None:
        record(session)
    job = _lock_job(session, claim)
    if job is None:
        return True
    new = list(children) if job.ending is None else []
    _add(session, job, new)
    _settle(session, job, finish or (lambda _session, _job_id: result))
    return True


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A step that succeeded, and its result as JSON, which is to be its job's."""

    claim: Claim
    result: EncodedJson


# As `succeed` does it for each, in the same order of locks: steps, then jobs, each by their ids.
# The result is written once, to the job. A batch has a step that follows its end.
END_JOBS = text("""
    WITH mine AS MATERIALIZED (
        SELECT s.id, s.job_id, e.result FROM ROWS FROM (
            unnest(CAST(:ids AS bigint[])), unnest(CAST(:attempts AS int[])),
            jsonb_array_elements(CAST(:results AS jsonb))
        ) e(id, attempt, result)
        JOIN steps s ON s.id = e.id AND s.attempt = e.attempt
        WHERE s.state = 'running' AND NOT s.after_end
        ORDER BY s.id FOR NO KEY UPDATE OF s
    ), last AS MATERIALIZED (
        SELECT j.id, mine.id AS step_id, mine.result FROM mine JOIN jobs j ON j.id = mine.job_id
        WHERE j.state = 'running' AND j.ending IS NULL AND j.open_steps = 1
          AND j.webhook IS NULL AND j.conversation_id IS NULL AND j.kind <> 'batch'
        ORDER BY j.id FOR NO KEY UPDATE OF j
    ), ended AS (
        UPDATE jobs SET state = 'succeeded', open_steps = 0, finished_at = now(),
            result = CASE WHEN last.result <> 'null' THEN last.result END
        FROM last WHERE jobs.id = last.id
    )
    UPDATE steps SET state = 'succeeded', lease_until = NULL, finished_at = now(), error = NULL
    FROM last WHERE steps.id = last.step_id
    RETURNING steps.id
""")


def end_jobs(session: Transaction, endings: Sequence[Ending]) -> set[int]:
    """Record successes, by one statement, with which nothing but their jobs end; the ids of these
    steps. All others are left as they are, for `succeed`: attempts that run no longer, jobs that
    have other open steps or are ending otherwise, and those whose end has something follow.
    """
    for ending in endings:  # now, for the answer to a commit may be lost
        if not ending.claim.is_line:
            session.publish(ending.claim.job_id, EventType.END, {"state": State.SUCCEEDED.value})
    rows = session.execute(
        END_JOBS,
        _tokens([ending.claim for ending in endings])
        | {"results": f"[{','.join(ending.result.text for ending in endings)}]"},
    )
    ended = {row.id for row in rows}
    for ending in endings:
        if ending.claim.step_id not in ended:
            session.retract(ending.claim.job_id, EventType.END)
    return ended


def fail(
    session: Transaction,
    claim: Claim,
    error: dict[str, Any],
    *,
    absorb: Record | None = None,
    finish: Finish | None = None,
    dead: bool = False,
) -> bool:
    """Record a final failure. `absorb`, if given, books it in the job, which then goes on."""
    if not _leave_running(session, claim, State.FAILED, error=error):
        return _no_op(claim, "fail")
    if absorb is not None:
        absorb(session)
    job = _lock_job(session, claim)
    if job is None:
        return True
    if absorb is None:
        jobs.stop(session, claim.job_id, State.FAILED, error, dead)
    _settle(session, job, finish or (lambda _session, _job_id: None))
    return True


def abandon(session: Transaction, claim: Claim) -> bool:
    """Record that a running step stopped because its job is ending."""
    if not _leave_running(session, claim, State.CANCELLED):
        return _no_op(claim, "abandon")
    job = _lock_job(session, claim)
    if job is not None:
        _settle(session, job, lambda _session, _job_id: None)
    return True


def retry(
    session: Transaction, claim: Claim, error: dict[str, Any] | None, *, in_s: float, free: bool
) -> bool:
    """Queue the step again after `in_s` seconds; `free` does not count the attempt.

    Without an `error` the reason of the try before stays. A step whose job is ending is not tried
    again.
    """
    running = select(Step.id).where(*_is_running(claim)).with_for_update()
    if session.execute(running).first() is None:
        return _no_op(claim, "retry")
    # Under the job's lock: a cancel that comes now waits, and then finds the step queued.
    job = _lock_job(session, claim)
    if job is not None and job.ending is not None:
        return abandon(session, claim)
    reason = {} if error is None else {"error": error}
    session.execute(
        update(Step)
        .where(*_is_running(claim))
        .values(
            state=State.QUEUED.value,
            lease_until=None,
            worker=None,
            # The number of the attempt fences, and so it always grows. What is shown of it is what
            # it has grown beyond this (`shared/jobs/claims.py`).
            max_attempts=func.least(Step.max_attempts, INT32_MAX - 1) + (1 if free else 0),
            run_after=func.now() + timedelta(seconds=in_s),
            **reason,
        )
    )
    return True


def put_off(
    session: Transaction, claim: Claim, *, in_s: float, record: Record | None = None
) -> bool:
    """Record what an attempt has done, and queue the step again for after `in_s` seconds: there is
    more to do. Attempts are counted from 0 again.

    `record` writes under the lock of the job, and not where the job is ending: nothing that it adds
    to the job is missed by who ends it.
    """
    running = select(Step.id).where(*_is_running(claim)).with_for_update()
    if session.execute(running).first() is None:
        return _no_op(claim, "put off")
    job = _lock_job(session, claim)
    if job is not None and job.ending is not None:
        return abandon(session, claim)
    if record is not None:
        record(session)
    limit = claim.max_attempts - claim.free_attempts
    session.execute(
        update(Step)
        .where(*_is_running(claim))
        .values(
            state=State.QUEUED.value,
            lease_until=None,
            worker=None,
            error=None,
            max_attempts=min(claim.attempt + limit, INT32_MAX),
            run_after=func.now() + timedelta(seconds=in_s),
        )
    )
    if in_s == 0:
        session.ring(claim.queue)
    return True


def is_ending(session: Session, claim: Claim) -> bool:
    return jobs.ending_of(session, claim.job_id) is not None


def was_recorded(session: Session, claim: Claim) -> bool:
    """Whether this very attempt is recorded as a success: its commit may have gone unanswered."""
    step_id = session.scalar(
        select(Step.id).where(
            Step.id == claim.step_id,
            Step.attempt == claim.attempt,
            Step.state == State.SUCCEEDED.value,
        )
    )
    return step_id is not None


def _has_ended_lease() -> ColumnElement[bool]:
    """A lease that is over, or that nobody can have taken: none at all, or one beyond every limit
    of SLUICE_STEP_LEASE_S."""
    return or_(
        Step.lease_until < func.now(),
        Step.lease_until.is_(None),
        Step.lease_until > func.now() + timedelta(seconds=2 * YEAR_S),
    )


def expired(session: Session, *where: ColumnElement[bool], limit: int) -> list[tuple[int, UUID]]:
    """Running steps whose lease has ended, with their jobs, the longest ago first.

    Locks nothing.
    """
    rows = session.execute(
        select(Step.id, Step.job_id)
        .where(Step.state == State.RUNNING.value, _has_ended_lease(), *where)
        .order_by(Step.lease_until)
        .limit(limit)
    )
    return [(row.id, row.job_id) for row in rows]


def take(session: Session, step_id: int) -> Claim | None:
    """The attempt of a step whose lease has ended, locked until the commit; None if it is not so
    any more, or somebody else is at it.

    It comes without its payload, which may be what cannot be read (`payload_of`).
    """
    row = session.execute(
        select(
            Step.id, Step.job_id, Step.name, Step.queue, Step.lane, Step.fair_key, Step.attempt,
            Step.max_attempts, Step.batch_key, Job.kind,
            (cast(Step.max_attempts, BigInteger) - Job.max_attempts).label("free_attempts"),
        )
        .join(Job, Job.id == Step.job_id)
        .where(
            Step.id == step_id,
            Step.state == State.RUNNING.value,
            _has_ended_lease(),
        )
        .with_for_update(of=Step, skip_locked=True)
    ).first()  # fmt: skip
    if row is None:
        return None
    return Claim(
        step_id=row.id, job_id=row.job_id, name=row.name, queue=row.queue, kind=row.kind,
        lane=row.lane, fair_key=row.fair_key, payload={}, attempt=row.attempt,
        max_attempts=row.max_attempts, batch_key=row.batch_key, free_attempts=row.free_attempts,
    )  # fmt: skip


def payload_of(session: Session, claim: Claim) -> dict[str, Any]:
    payload: dict[str, Any] = session.scalars(
        select(Step.payload).where(Step.id == claim.step_id)
    ).one()
    return payload


def runnable(
    session: Session, *, worker_heartbeat_s: float = HEARTBEAT_S, up_to: int = 1000
) -> dict[str, int]:
    """How many steps could be claimed now, by the list that rings for them; none when paused.

    Counting ends at `up_to` in each list, and reads no more steps than that of a lane and key.
    Steps of models that no living worker serves are for nobody to claim, and are not counted.
    """
    counts: Counter[str] = Counter()
    for queue, route, count in session.execute(
        RUNNABLE, {"alive_s": ALIVE_FACTOR * worker_heartbeat_s, "up_to": up_to}
    ):
        counts[list_of(queue, route)] += count
    return {name: min(count, up_to) for name, count in counts.items()}


# As in `claims.CLAIM`: who has steps in a lane by a loose index scan, then each served route,
# without a walk over the steps whose time has not come.
RUNNABLE = text("""
    WITH RECURSIVE present AS (
        (SELECT queue, lane, fair_key FROM steps WHERE state = 'queued'
         ORDER BY queue, lane, fair_key LIMIT 1)
        UNION ALL
        SELECT n.queue, n.lane, n.fair_key FROM present p CROSS JOIN LATERAL (
            SELECT s.queue, s.lane, s.fair_key FROM steps s WHERE s.state = 'queued'
              AND (s.queue, s.lane, s.fair_key) > (p.queue, p.lane, p.fair_key)
            ORDER BY s.queue, s.lane, s.fair_key LIMIT 1) n
    ), routes AS (
        SELECT '' AS route UNION SELECT unnest(routes) FROM workers
        WHERE last_seen_at > now() - make_interval(secs => :alive_s)
    )
    SELECT p.queue, d.route, c.count FROM present p CROSS JOIN routes d CROSS JOIN LATERAL (
        SELECT count(*) AS count FROM (
            (SELECT FROM steps WHERE queue = p.queue AND state = 'queued' AND lane = p.lane
               AND fair_key = p.fair_key AND route = d.route
               AND run_after <= created_at
             ORDER BY job_id, id LIMIT :up_to)
            UNION ALL
            (SELECT FROM steps WHERE queue = p.queue AND state = 'queued' AND lane = p.lane
               AND fair_key = p.fair_key AND route = d.route
               AND run_after > created_at AND run_after <= now()
             ORDER BY run_after, job_id, id LIMIT :up_to)) due) c
    WHERE c.count > 0
      AND p.queue NOT IN (SELECT name FROM queues WHERE paused_at IS NOT NULL)
""")


def result_of(session: Session, job_id: UUID, name: str) -> dict[str, Any]:
    """What an earlier step of the same job recorded. Raises NoResultFound."""
    value = session.execute(
        select(Step.result).where(
            Step.job_id == job_id, Step.name == name, Step.state == State.SUCCEEDED
        )
    ).scalar_one()
    assert isinstance(value, dict)
    return value


def results_of(session: Session, job_id: UUID, name: str) -> list[dict[str, Any]]:
    """What the steps of that name have recorded, oldest first, of those that gave a result."""
    values = session.scalars(
        select(Step.result)
        .where(
            Step.job_id == job_id,
            Step.name == name,
            Step.state == State.SUCCEEDED,
        )
        .order_by(Step.id)
    )
    return [value for value in values if isinstance(value, dict)]


def _is_running(claim: Claim) -> tuple[Any, ...]:
    return (
        Step.id == claim.step_id,
        Step.attempt == claim.attempt,
        Step.state == State.RUNNING.value,
    )


def _leave_running(session: Session, claim: Claim, state: State, **values: Any) -> bool:
    row = session.execute(
        update(Step)
        .where(*_is_running(claim))
        .values(state=state.value, lease_until=None, finished_at=func.now(), **values)
        .returning(Step.id)
    ).first()
    return row is not None


def _lock_job(session: Session, claim: Claim) -> Job | None:
    """The job that the step counts in, locked; None for a step that runs after its job's end.

    Those take no lock on the job: a redrive locks it first and deletes its steps then.
    """
    after_end = session.scalar(select(Step.after_end).where(Step.id == claim.step_id))
    return None if after_end else jobs.lock(session, claim.job_id)


def _add(session: Transaction, job: Job, children: list[NewStep]) -> None:
    if not children:
        return
    job.open_steps = min(job.open_steps + len(children), INT32_MAX)
    rows = [
        {
            "job_id": job.id, "name": child.name, "queue": child.queue.value, "route": child.route,
            "batch_key": child.batch_key, "lane": job.lane, "fair_key": job.fair_key,
            "state": State.QUEUED.value,
            "payload": child.payload, "max_attempts": job.max_attempts,
        }
        for child in children
    ]  # fmt: skip
    session.execute(insert(Step), rows)
    for child in children:
        session.ring(list_of(child.queue, child.route))


def _settle(session: Transaction, job: Job, finish: Finish) -> None:
    """One step fewer is open; the last one ends the job."""
    job.open_steps = max(job.open_steps - 1, 0)  # a bad row's count must not leave its range
    if job.open_steps > 0:
        return
    result = finish(session, job.id) if job.ending is None else None
    jobs.end(session, job, result)


def _no_op(claim: Claim, what: str) -> bool:
    log.warning(
        "%s of step %s (%s) attempt %s ignored: the attempt is no longer running",
        what, claim.step_id, claim.name, claim.attempt,
    )  # fmt: skip
    return False
