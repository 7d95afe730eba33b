"""Jobs: find, cancel, end, redrive.

All writers of job and step state are in this package: this module, `submission.py` (a new job and
its first step), `claims.py` (a step for a worker), `steps.py` (what became of an attempt) and
`turns.py` (a held turn is let go).

Every function takes a session inside a transaction and never commits; what is to be announced
goes out after the commit (`shared/database/transaction.py`). Locks are always taken in the order
job, then queued steps (skipping locked ones), so that no two of these calls wait for each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    Text,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import InstrumentedAttribute, Session, defer, load_only

from shared.bounds import as_object, cut
from shared.database.transaction import Transaction
from shared.errors import Conflict, NotFound
from shared.jobs import turns
from shared.jobs.claims import Claim
from shared.jobs.submission import NewJob, first_list, first_step
from shared.kinds.registry import BATCH, KINDS
from shared.redis.events import EventType
from shared.tables import Attachment, IngestItem, Job, PathToDelete, Step
from shared.vocabulary import ENDED, LaneRank, Queue, State, known


def get(session: Session, job_id: UUID) -> Job:
    """Raises NotFound."""
    job = session.get(Job, job_id)
    if job is None:
        raise _unknown(job_id)
    return job


def hides_text(job: Job, fair_key: str) -> bool:
    """Whether the key may know of the job, but not what it says: turns of a conversation are for
    the key alone that owns it."""
    return job.private and job.fair_key != fair_key


def inputs_of(session: Session, job_ids: Sequence[UUID]) -> dict[UUID, Any]:
    """The inputs of those of the jobs that there are."""
    rows = session.execute(select(Job.id, Job.input).where(Job.id.in_(job_ids)))
    return {row.id: row.input for row in rows}


def state_of(session: Session, job_id: UUID) -> State:
    """Raises NotFound."""
    state = session.scalar(select(Job.state).where(Job.id == job_id))
    if state is None:
        raise _unknown(job_id)
    return known(state)


def ending_of(session: Session, job_id: UUID) -> str | None:
    """The state that an open job is about to end in, if it is."""
    return session.scalar(select(Job.ending).where(Job.id == job_id))


@dataclass(frozen=True, kw_only=True)
class Filter:
    state: State | None = None
    kind: str | None = None
    collection: str | None = None
    dead: bool | None = None
    batch_id: UUID | None = None
    """Whose lines are listed; None for the jobs that are no lines, and dead lines where `dead`."""


def page(session: Session, where: Filter, *, limit: int, before: UUID | None) -> list[Job]:
    """The newest jobs that match, newest first, older than `before`.

    What users sent and what came of it is not loaded (`contents`).
    """
    query: Select[Job] = select(Job).options(*_without_contents()).order_by(Job.id.desc())
    query = query.limit(limit)
    if before is not None:
        query = query.where(Job.id < before)
    if where.state is not None:
        query = query.where(Job.state == where.state.value)
    if where.kind is not None:
        query = query.where(Job.kind == where.kind)
    if where.collection is not None:
        query = query.where(Job.collection == where.collection)
    if where.dead is not None:
        query = query.where(Job.dead.is_(where.dead))
    if where.batch_id is not None:
        query = query.where(Job.batch_id == where.batch_id)
    elif not where.dead:
        query = query.where(Job.batch_id.is_(None))
    return list(session.scalars(query))


def _without_contents() -> list[Any]:
    columns = (Job.input, Job.result, Job.meta, Job.webhook)
    return [defer(column, raiseload=True) for column in columns]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Of a job, what may be large: each is None where it is larger than was asked for."""

    input: Any = None
    result: Any = None
    metadata: Any = None
    truncated: tuple[str, ...] = ()
    """The names of those that are there, and too large."""


def without_contents(session: Session, job_id: UUID) -> Job:
    """The job, less what may be large. Raises NotFound."""
    job = session.scalar(select(Job).options(*_without_contents()).where(Job.id == job_id))
    if job is None:
        raise _unknown(job_id)
    return job


def contents(
    session: Session, job_ids: Sequence[UUID], *, limit_bytes: int
) -> dict[UUID, Contents]:
    """Input, result and metadata of jobs as far as none has more bytes of JSON than the limit.

    PostgreSQL reads no large value for that: its stored size is looked at first.
    """
    statement = select(Job.id, *_small_contents()).where(Job.id.in_(job_ids))
    rows = session.execute(statement, {"limit_bytes": limit_bytes})
    return {row.id: _contents(row) for row in rows}


def with_small_contents(
    session: Session, job_id: UUID, *, limit_bytes: int
) -> tuple[Job, Contents]:
    """The job and its `contents`, by one statement. Raises NotFound."""
    values = {"job_id": job_id, "limit_bytes": limit_bytes}
    row = session.execute(_job_with_small_contents(), values).first()
    if row is None:
        raise _unknown(job_id)
    return row.Job, _contents(row)


@cache
def _job_with_small_contents() -> Select[Any]:
    """Built once: every answer that waits looks so, and building it takes as long as running it."""
    return (
        select(Job, *_small_contents())
        .options(*_without_contents())
        .where(Job.id == bindparam("job_id"))
    )


_CONTENTS = {"input": Job.input, "result": Job.result, "metadata": Job.meta}


def _small_contents() -> list[ColumnElement[Any]]:
    """Its statement has the parameter `limit_bytes`."""
    return [
        *(_small(column).label(name) for name, column in _CONTENTS.items()),
        *(column.is_not(None).label(f"has_{name}") for name, column in _CONTENTS.items()),
    ]


def _small(column: InstrumentedAttribute[Any]) -> ColumnElement[Any]:
    limit_bytes = bindparam("limit_bytes", type_=Integer)
    return case(
        (func.pg_column_size(column) > limit_bytes, null()),
        (func.octet_length(cast(column, Text)) > limit_bytes, null()),
        else_=column,
    )


def _contents(row: Row[Any]) -> Contents:
    values = {name: getattr(row, name) for name in _CONTENTS}
    truncated = [n for n in _CONTENTS if values[n] is None and getattr(row, f"has_{n}")]
    return Contents(**values, truncated=tuple(truncated))


def erase(session: Session, job_id: UUID) -> str:
    """Remove a job that has ended, with its steps; returns the folder of the storage that is to be
    deleted once this is committed. Raises NotFound, or Conflict while the job is open."""
    row = session.execute(
        select(Job.state, Job.batch_id).where(Job.id == job_id).with_for_update()
    ).first()
    if row is None:
        raise _unknown(job_id)
    if row.state not in ENDED:
        raise Conflict(
            f"Job {job_id} is {cut(row.state, 40)}; cancel it, and erase it when it has ended."
        )
    _refuse_line(job_id, row.batch_id, "erased", "DELETE /v1/jobs/{batch}")
    session.execute(DELETE_RESULTS_LATER, {"id": job_id})
    session.execute(delete(Job).where(Job.id == job_id))
    return result_folder(job_id)


# What lines of a batch have put into the storage goes with it.
DELETE_RESULTS_LATER = text("""
    INSERT INTO paths_to_delete (path, is_folder)
    SELECT 'results/' || right(replace(CAST(id AS text), '-', ''), 2) || '/' || id, true
    FROM jobs WHERE batch_id = :id AND result_path IS NOT NULL
    ON CONFLICT DO NOTHING
""")


def _refuse_line(job_id: UUID, batch_id: UUID | None, done: str, call: str) -> None:
    """Raises Conflict for a line of a batch, whose counts and files would not know of it."""
    if batch_id is not None:
        raise Conflict(
            f"Job {job_id} is a line of the batch {batch_id}, and is {done} with it: "
            f"`{call.format(batch=batch_id)}`."
        )


def forget(session: Session, job_ids: Sequence[UUID]) -> list[UUID]:
    """Remove those of the jobs that have ended, with their steps; returns them."""
    return list(
        session.scalars(
            delete(Job)
            .where(Job.id.in_(job_ids), Job.finished_at.is_not(None), Job.state.in_(ENDED))
            .returning(Job.id)
        )
    )


# Paths of JSON are lax: an input of another shape has no such file, and is no error.
_IN_USE = text("""
    SELECT DISTINCT used.id FROM (
        SELECT kind, input FROM jobs WHERE state IN ('queued', 'running')
        UNION ALL SELECT kind, input FROM schedules
    ) j
    JOIN unnest(CAST(:kinds AS text[]), CAST(:paths AS jsonpath[])) kind (name, path)
        ON kind.name = j.kind
    CROSS JOIN LATERAL (SELECT jsonb_path_query(j.input, kind.path) #>> '{}' AS id) used
    WHERE used.id = ANY(:ids)
""")


def files_in_use(session: Session, ids: Sequence[UUID]) -> set[str]:
    """Those of the files that an open job needs, or one that a schedule will submit. The inputs of
    all of these, of kinds that take files, are read for that."""
    if not ids:
        return set()
    paths = {kind.name: kind.file_path for kind in KINDS.values() if kind.file_path is not None}
    values = {"ids": [str(id_) for id_ in ids], "kinds": list(paths), "paths": [*paths.values()]}
    return set(session.scalars(_IN_USE, values))


def cancel(session: Transaction, job_id: UUID) -> None:
    """End a job: queued steps now, running ones when their workers notice (within 2 s).

    Cancelling a job that has ended changes nothing.
    """
    stop(session, job_id, State.CANCELLED, error=None)
    job = _locked(session, job_id)
    if job.state not in ENDED and not _has_open_steps(session, job_id):
        job.open_steps = 0  # the row counted steps that there are not
        end(session, job, result=None)


def stop(
    session: Transaction,
    job_id: UUID,
    ending: State,
    error: dict[str, Any] | None,
    dead: bool = False,
) -> None:
    """Let an open job end as `ending`, as soon as none of its steps runs any more.

    Called again, it takes the queued steps that somebody had locked the last time.
    """
    job = _locked(session, job_id)
    if job.state in ENDED:
        return
    if job.ending is None:
        job.ending = ending.value
        job.error = error
        job.dead = dead
    if job.kind == BATCH.name:
        stop_lines(session, job_id)
    # Steps that a worker is claiming this moment are skipped; that worker sees `ending`.
    queued = (
        select(Step.id)
        .where(Step.job_id == job_id, Step.state == State.QUEUED, ~Step.after_end)
        .with_for_update(skip_locked=True)
    )
    stopped = session.execute(
        update(Step)
        .where(Step.id.in_(queued))
        .values(state=State.CANCELLED.value, finished_at=func.now())
        .returning(Step.id)
    ).all()
    job.open_steps = max(job.open_steps - len(stopped), 0)
    if job.open_steps == 0:
        end(session, job, result=None)


# Each line ends as `stop` lets a job end: its queued steps now, those that are running when their
# workers notice. Locks are taken in the order jobs by their ids, then queued steps.
STOP_LINES = text("""
    WITH unsettled AS MATERIALIZED (
        SELECT j.id, j.open_steps FROM batch_lines l JOIN jobs j ON j.id = l.job_id
        WHERE l.batch_id = :id AND l.state = 'open' AND j.state IN ('queued', 'running')
        ORDER BY j.id FOR NO KEY UPDATE OF j
    ), taken AS MATERIALIZED (
        SELECT s.id FROM unsettled u JOIN steps s ON s.job_id = u.id
        WHERE s.state = 'queued' AND NOT s.after_end
        FOR UPDATE OF s SKIP LOCKED
    ), stopped AS (
        UPDATE steps SET state = 'cancelled', finished_at = now()
        FROM taken WHERE steps.id = taken.id
        RETURNING steps.job_id
    ), left_open AS (
        SELECT u.id, greatest(u.open_steps - count(s.job_id), 0) AS steps
        FROM unsettled u LEFT JOIN stopped s ON s.job_id = u.id GROUP BY u.id, u.open_steps
    )
    UPDATE jobs SET open_steps = left_open.steps,
        state = CASE WHEN left_open.steps = 0 THEN coalesce(jobs.ending, 'cancelled')
            ELSE jobs.state END,
        ending = CASE WHEN left_open.steps > 0 THEN coalesce(jobs.ending, 'cancelled') END,
        finished_at = CASE WHEN left_open.steps = 0 THEN now() END
    FROM left_open WHERE jobs.id = left_open.id
    RETURNING jobs.id, jobs.state, left_open.steps
""")


def stop_lines(session: Transaction, batch_id: UUID) -> None:
    """Cancel the lines of a batch that are open, by one statement. The batch is locked."""
    session.execute(STOP_LINES, {"id": batch_id})


def _has_open_steps(session: Session, job_id: UUID) -> bool:
    is_open = Step.state.in_((State.QUEUED.value, State.RUNNING.value))
    query = select(Step.id).where(Step.job_id == job_id, is_open, ~Step.after_end).limit(1)
    return session.scalar(query) is not None


def end(session: Transaction, job: Job, result: Any) -> None:
    """Write the final state of a locked job that has no open step."""
    job.state = job.ending or State.SUCCEEDED.value
    job.ending = None
    job.result = result if job.state == State.SUCCEEDED else None
    job.finished_at = func.now()
    session.flush()
    if job.has_webhook:
        webhook = {
            "job_id": job.id, "name": "webhook", "queue": Queue.WEBHOOK.value, "lane": job.lane,
            "fair_key": job.fair_key, "state": State.QUEUED.value, "after_end": True,
            "max_attempts": job.max_attempts,
        }  # fmt: skip
        session.execute(insert(Step), [webhook])
        session.ring(Queue.WEBHOOK.value)
    if job.kind == BATCH.name:
        _add_closing_step(session, job)
    if job.conversation_id is not None:
        turns.let_next_go(session, job.conversation_id)
    if job.batch_id is None:
        session.publish(job.id, EventType.END, {"state": job.state})


def _add_closing_step(session: Transaction, job: Job) -> None:
    step = KINDS[job.kind].closing_step
    assert step is not None
    closing = {
        "job_id": job.id, "name": step.name, "queue": step.queue.value, "lane": job.lane,
        "fair_key": job.fair_key, "state": State.QUEUED.value, "after_end": True,
        "max_attempts": job.max_attempts,
    }  # fmt: skip
    session.execute(insert(Step), [closing])
    session.ring(step.queue.value)


REDRIVEN = (State.FAILED, State.CANCELLED)


def redrive(
    session: Transaction,
    job_id: UUID,
    *,
    states: Sequence[State] = REDRIVEN,
    batch_id: UUID | None = None,
) -> None:
    """Run a job again from its start that has ended in one of `states`; a line of a batch only for
    that batch. Raises Conflict."""
    job = _locked(session, job_id)
    if job.state not in states:
        raise Conflict(
            f"Job {job_id} is {job.state}; only failed and cancelled jobs can be retried."
        )
    if job.batch_id != batch_id:
        _refuse_line(job_id, job.batch_id, "retried", "POST /v1/batches/{batch}/retry")
    if job.private and job.conversation_id is None:
        raise Conflict(
            f"The conversation of job {job_id} was erased, so its turn cannot be retried. Start "
            "another with `POST /v1/conversations`."
        )
    try:
        new = NewJob(
            kind=KINDS[job.kind], input=dict(job.input), fair_key=job.fair_key,
            lane=LaneRank(job.lane).lane, max_attempts=job.max_attempts,
        )  # fmt: skip
        first = first_step(job_id, new)
    except (ValueError, TypeError, LookupError) as error:
        raise Conflict(
            f"Job {job_id} cannot be run again, for its row cannot be read. Erase it with "
            f"DELETE /v1/jobs/{job_id}, and submit another."
        ) from error
    session.execute(delete(Step).where(Step.job_id == job_id))
    session.execute(delete(IngestItem).where(IngestItem.job_id == job_id))
    session.execute(  # those of files of vector stores; see `shared/documents/attachments.py`
        update(Attachment)
        .where(Attachment.job_id == job_id)
        .values(state="in_progress", message=None)
        .execution_options(synchronize_session=False)
    )
    talks = job.conversation_id
    held = talks is not None and not turns.is_free(session, talks)
    job.state = State.QUEUED.value
    job.queue = new.kind.first_step.queue.value
    job.result_path = job.result_bytes = None
    job.warnings = []
    job.error = job.result = job.started_at = job.finished_at = job.deadline_at = None
    job.dead = False
    job.attempt = job.progress_done = 0
    job.progress_total = job.progress_unit = None
    for name, value in _NO_PACE.items():
        setattr(job, name, value)
    job.open_steps = 1
    due = {"run_after": turns.HELD} if held else {}
    session.execute(insert(Step), [first | due])
    if not held:
        session.ring(first_list(new))
    if job.batch_id is None:
        session.publish(job_id, EventType.STATE, {"state": State.QUEUED.value})


def news(job: Job) -> dict[str, Any]:
    """What a webhook tells of a job."""
    return {
        "id": str(job.id),
        "kind": job.kind,
        "state": job.state,
        "error": job.error,
        "metadata": as_object(job.meta),
        "created_at": job.created_at.isoformat(),
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
    }


_NO_PACE: Final[dict[str, int | None]] = {
    "paced_at": None, "paced_done": None, "paced_work": None, "work_done": 0, "work_total": 0,
}  # fmt: skip


def set_total(session: Transaction, job_id: UUID, total: int, unit: str) -> None:
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(progress_done=0, progress_total=total, progress_unit=unit, **_NO_PACE)
    )
    _publish_progress(session, job_id, 0, total, unit)


def extend_total(session: Transaction, job_id: UUID, more: int) -> None:
    """There is more to do than was known; the job is locked until the commit."""
    row = session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(progress_total=func.coalesce(Job.progress_total, 0) + literal(more))
        .returning(Job.progress_done, Job.progress_total, Job.progress_unit)
    ).one()
    _publish_progress(session, job_id, row.progress_done, row.progress_total, row.progress_unit)


def total(session: Session, job_id: UUID) -> int:
    """How much there is to do, as far as is known."""
    return session.scalar(select(Job.progress_total).where(Job.id == job_id)) or 0


def advance(session: Transaction, job_id: UUID, done: int, *, work: int = 0) -> None:
    """Count `done` more units as done, and so many parts of units."""
    row = session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            progress_done=Job.progress_done + literal(done),
            work_done=Job.work_done + literal(work),
            paced_at=func.coalesce(Job.paced_at, func.now()),
            paced_done=func.coalesce(Job.paced_done, Job.progress_done + literal(done)),
            paced_work=func.coalesce(Job.paced_work, Job.work_done + literal(work)),
        )
        .returning(Job.progress_done, Job.progress_total, Job.progress_unit)
    ).one()
    if done:
        _publish_progress(session, job_id, row.progress_done, row.progress_total, row.progress_unit)


def add_work(session: Session, job_id: UUID, work: int) -> None:
    """There are so many more parts of units to do."""
    session.execute(
        update(Job).where(Job.id == job_id).values(work_total=Job.work_total + literal(work))
    )


def report(session: Transaction, claim: Claim, done: int, total: int, unit: str) -> None:
    """Set what is done and of how much, both of which may only grow: a later attempt that begins
    anew takes nothing back. An attempt that runs no longer reports nothing."""
    runs = exists().where(
        Step.id == claim.step_id,
        Step.attempt == claim.attempt,
        Step.state == State.RUNNING.value,
    )
    row = session.execute(
        update(Job)
        .where(Job.id == claim.job_id, runs)
        .values(
            progress_done=func.greatest(Job.progress_done, done),
            progress_total=func.greatest(func.coalesce(Job.progress_total, 0), total),
            progress_unit=unit,
        )
        .returning(Job.progress_done, Job.progress_total)
        .execution_options(synchronize_session=False)
    ).first()
    if row is not None:
        _publish_progress(session, claim.job_id, row.progress_done, row.progress_total, unit)


def seconds_left(session: Session, job_id: UUID) -> float | None:
    """How long the job has until its deadline; None where it has none."""
    left_s = session.scalar(
        select(func.extract("epoch", Job.deadline_at - func.clock_timestamp())).where(
            Job.id == job_id
        )
    )
    return None if left_s is None else float(left_s)


def result_folder(job_id: UUID) -> str:
    """Where in the storage results of the job lie that are too large for a row."""
    return f"results/{job_id.hex[-2:]}/{job_id}"


def members_folder(job_id: UUID) -> str:
    """Where in the storage lies what was unpacked for the job."""
    return f"{result_folder(job_id)}/members"


def delete_members_later(session: Session, job_id: UUID) -> None:
    """Have what was unpacked for the job deleted; nothing reads it any more."""
    row = {"path": members_folder(job_id), "is_folder": True}
    session.execute(upsert(PathToDelete).values(row).on_conflict_do_nothing())


WARNINGS_LIMIT = 1000
"""With so many, more of them help nobody."""


def warn(session: Session, job_id: UUID, warnings: Sequence[str]) -> None:
    """Add to what the user has to know of the job, up to a limit."""
    session.execute(
        update(Job)
        .where(Job.id == job_id, func.cardinality(Job.warnings) < WARNINGS_LIMIT)
        .values(warnings=func.array_cat(Job.warnings, cast(list(warnings), ARRAY(Text))))
    )


def note_result_file(session: Session, job_id: UUID, *, path: str, size_bytes: int) -> None:
    """Where in the storage the job's result lies, which is too large for its row."""
    session.execute(
        update(Job).where(Job.id == job_id).values(result_path=path, result_bytes=size_bytes)
    )


def _publish_progress(
    session: Transaction, job_id: UUID, done: int, total: int | None, unit: str | None
) -> None:
    data = {"done": done, "total": total, "unit": unit}
    session.publish(job_id, EventType.PROGRESS, data)


def lock(session: Session, job_id: UUID) -> Job | None:
    """The job, locked until the commit; None where it is gone.

    What users sent is not loaded: it may be large, and a job whose row holds a value that Python
    cannot read has to be ended all the same.
    """
    row = session.execute(
        select(Job, Job.webhook.is_not(None))
        .where(Job.id == job_id)
        .options(load_only(*_LOCKED))
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    ).first()
    if row is None:
        return None
    job, has_webhook = row
    object.__setattr__(job, "has_webhook", has_webhook)
    return job


_LOCKED = (
    Job.kind, Job.state, Job.ending, Job.lane, Job.queue, Job.fair_key, Job.conversation_id,
    Job.batch_id, Job.open_steps, Job.max_attempts,
)  # fmt: skip


def _locked(session: Session, job_id: UUID) -> Job:
    job = lock(session, job_id)
    if job is None:
        raise _unknown(job_id)
    return job


def _unknown(job_id: UUID) -> NotFound:
    return NotFound(f"There is no job {job_id}; it may have been removed by retention.")
