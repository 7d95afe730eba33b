"""Submitting: new jobs and their first steps."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import Boolean, ColumnElement, Insert, Table, bindparam, case, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared.database.transaction import Transaction
from shared.errors import Conflict
from shared.jobs import turns
from shared.kinds.embed import EMBED
from shared.kinds.kind import Kind
from shared.redis.bell import list_of
from shared.tables import Job, Step, new_id
from shared.vocabulary import Lane, State

# The bare tables: submitting is the hottest path, and needs nothing of the ORM.
JOBS = cast(Table, Job.__table__)
STEPS = cast(Table, Step.__table__)
COMMIT = "synchronous_commit"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a client asks for, validated. Durations in seconds."""

    kind: Kind
    input: dict[str, Any]
    fair_key: str
    lane: Lane = Lane.NORMAL
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook: dict[str, Any] | None = None
    timeout_s: float | None = None
    max_attempts: int = 3
    run_after: datetime | None = None
    conversation_id: UUID | None = None
    batch_id: UUID | None = None
    """The batch of which it is a line."""
    idempotency_key: str | None = None
    body_hash: str | None = None
    """Of what the client sent, where that is known: defaults may change, a body does not."""
    check_model: Callable[[str, str], None] | None = None
    """Raises InvalidInput if the embedding model of the job's collection is not set up, of which it
    gets the names: model, collection."""

    def request_hash(self) -> str:
        """Of the request, so that a reused key with another body is noticed."""
        if self.body_hash is not None:
            return self.body_hash
        parts = [
            self.kind.name, self.input, self.lane, self.metadata, self.webhook,
            self.timeout_s, self.max_attempts, str(self.run_after),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Submitted(NamedTuple):
    """A job that a submit made, or that it found under its idempotency key."""

    id: UUID
    is_new: bool
    created_at: datetime


def submit(session: Transaction, new: NewJob, *, is_waited: bool = False) -> Submitted:
    """Add a job and its first step, in one statement.

    Raises Conflict where the idempotency key stands for another request. A turn of a conversation
    waits for the turns before it, and needs a transaction around. What its input names is resolved
    (`Kind.resolve`), in place.

    With `is_waited` the commit does not wait for the disk. Whoever names the job to a client before
    its end calls `Ledger.flush` first; the record of its end waits for the disk in any case.
    """
    new.kind.resolve(session, [new.input])
    job_id = new_id()
    held = new.conversation_id is not None and not turns.is_free(session, new.conversation_id)
    due = turns.HELD if held else new.run_after
    values = {f"job_{name}": value for name, value in _job_row(job_id, new).items()}
    values |= {f"step_{name}": value for name, value in first_step(job_id, new).items()}
    values |= {"step_run_after": due, "is_waited": is_waited}
    row = session.execute(_submit_statement(), values).first()
    if row is None:
        replayed = find_replayed(session, new)
        assert replayed is not None  # there was a conflict with it
        return replayed
    if due is None:
        session.ring(first_list(new))
    return Submitted(job_id, True, row.created_at)


def first_list(new: NewJob) -> str:
    """The list that rings for the job's first step."""
    return list_of(new.kind.first_step.queue, new.kind.route(new.input))


@cache
def _submit_statement() -> Insert:
    """Built once: building it takes longer than running it.

    A conflict of idempotency keys waits for the other submit and then yields to it.
    """
    example = NewJob(kind=EMBED, input=dict(EMBED.example), fair_key="")
    job = (
        upsert(JOBS)
        .values({name: _parameter("job", JOBS, name) for name in _job_row(UUID(int=0), example)})
        .on_conflict_do_nothing()
        .returning(JOBS.c.id)
        .cte("job")
    )
    step: dict[str, ColumnElement[Any]] = {
        name: _parameter("step", STEPS, name) for name in first_step(UUID(int=0), example)
    }
    commit = case(
        (bindparam("is_waited", type_=Boolean), "off"), else_=func.current_setting(COMMIT)
    )
    step["run_after"] = func.coalesce(_parameter("step", STEPS, "run_after"), func.now())
    return (
        insert(STEPS)
        .from_select(list(step), select(*step.values()).select_from(job))
        .returning(STEPS.c.created_at, func.set_config(COMMIT, commit, True))
    )


def _parameter(prefix: str, table: Table, name: str) -> ColumnElement[Any]:
    return bindparam(f"{prefix}_{name}", type_=table.c[name].type)


def submit_batch(session: Transaction, new_jobs: list[NewJob]) -> list[UUID]:
    """Add many jobs in one transaction: all or none. Idempotency keys are not for batches."""
    talks = {new.conversation_id for new in new_jobs if new.conversation_id is not None}
    if talks:
        # In one order, so that no two batches wait for each other.
        for conversation_id in sorted(talks):
            turns.lock(session, conversation_id)
        # Each turn of a conversation waits for those before it, also for those of this batch.
        return [submit(session, new).id for new in new_jobs]
    inputs: dict[Kind, list[dict[str, Any]]] = {}
    for new in new_jobs:
        inputs.setdefault(new.kind, []).append(new.input)
    for kind, of_kind in inputs.items():
        kind.resolve(session, of_kind)
    rows = [(new_id(), new) for new in new_jobs]
    session.execute(insert(JOBS), [_job_row(job_id, new) for job_id, new in rows])
    session.execute(insert(Step), [first_step(job_id, new) for job_id, new in rows])
    for _, new in rows:
        if new.run_after is None:
            session.ring(first_list(new))
    return [job_id for job_id, _ in rows]


def _job_row(job_id: UUID, new: NewJob) -> dict[str, Any]:
    return {
        "id": job_id,
        "kind": new.kind.name,
        "state": State.QUEUED.value,
        "lane": new.lane.rank,
        "queue": new.kind.first_step.queue.value,
        "fair_key": new.fair_key,
        "private": new.conversation_id is not None,
        "collection": new.input.get("collection"),
        "conversation_id": new.conversation_id,
        "batch_id": new.batch_id,
        "input": new.input,
        "open_steps": 1,
        "max_attempts": new.max_attempts,
        "timeout_s": new.timeout_s,
        "metadata": new.metadata,
        "webhook": new.webhook,
        "run_after": new.run_after,
        "idempotency_key": new.idempotency_key,
        "request_hash": new.request_hash() if new.idempotency_key else None,
    }


def first_step(job_id: UUID, new: NewJob) -> dict[str, Any]:
    """The row of the step that such a job begins with."""
    first = new.kind.first_step
    step = {
        "job_id": job_id,
        "name": first.name,
        "queue": first.queue.value,
        "route": new.kind.route(new.input),
        "batch_key": new.kind.batch_key(new.input),
        "lane": new.lane.rank,
        "fair_key": new.fair_key,
        "state": State.QUEUED.value,
        "max_attempts": new.max_attempts,
    }
    return step if new.run_after is None else step | {"run_after": new.run_after}


def find_replayed(session: Session, new: NewJob) -> Submitted | None:
    """The job that was made for the idempotency key before. Raises Conflict where the key stands
    for another request."""
    if new.idempotency_key is None:
        return None
    row = session.execute(
        select(Job.id, Job.request_hash, Job.created_at).where(
            Job.fair_key == new.fair_key, Job.idempotency_key == new.idempotency_key
        )
    ).first()
    if row is None:
        return None
    if row.request_hash != new.request_hash():
        raise Conflict(
            f"Idempotency-Key {new.idempotency_key!r} was used for another request "
            f"(job {row.id}); send a new key with a new body."
        )
    return Submitted(row.id, False, row.created_at)
