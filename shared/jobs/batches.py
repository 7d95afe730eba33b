"""Batches in the ledger: their lines, their counts, and their answer files.

A batch is a job of the kind `batch` with a row in `batches`; each of its lines is a row in
`batch_lines`. A line is `waiting` until the batch's step makes a job of it, and then `open`. When
the job has ended, the step *settles* the line: one transaction writes its state, the counts, and
the part of a file that has its answer. So a line is counted once and answered once, even if a
worker dies. Nothing here commits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared import files
from shared.bounds import as_object, to_json
from shared.database.transaction import Transaction
from shared.errors import BatchExpired, Conflict, NotFound
from shared.files import StoredPath
from shared.jobs import jobs
from shared.kinds.batch import BATCH, LineError
from shared.tables import Batch, BatchLine, Job
from shared.vocabulary import ENDED, OPEN, State

WAITING = "waiting"
OPENED = "open"
EXPIRED = "expired"
WITHOUT_RESULT = (State.FAILED.value, State.CANCELLED.value, EXPIRED)


def get(session: Session, batch_id: UUID) -> tuple[Job, Batch | None]:
    """The job of a batch, and its row: None until its step has begun. Raises NotFound."""
    row = session.execute(_select().where(Job.id == batch_id)).first()
    if row is None:
        raise NotFound(
            f"There is no batch {batch_id}; it may have been removed by retention. "
            "`GET /v1/batches` lists those that there are."
        )
    return row[0], row[1]


def page(session: Session, *, limit: int, before: UUID | None) -> list[tuple[Job, Batch | None]]:
    """The newest batches, newest first, older than `before`."""
    query = _select().order_by(Job.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Job.id < before)
    return [(job, batch) for job, batch in session.execute(query)]


def _select() -> "Select[Job, Batch]":
    return (
        select(Job, Batch)
        .outerjoin(Batch, Batch.id == Job.id)
        .where(Job.kind == BATCH.name, Job.batch_id.is_(None))
    )


def begin(session: Session, batch_id: UUID, *, finish_by: datetime) -> Batch:
    """Make the row of a batch whose step begins, unless it exists."""
    session.execute(
        insert(Batch)
        .values(id=batch_id, finish_by=finish_by)
        .on_conflict_do_nothing(index_elements=["id"])
    )
    return session.execute(select(Batch).where(Batch.id == batch_id)).scalar_one()


# Reading the file: a row for each line, before any of them runs.


@dataclass(frozen=True, kw_only=True)
class NewLine:
    """A valid line and where its bytes lie in the file."""

    number: int
    custom_id: str
    start: int
    size_bytes: int
    url: str
    queue_model: str
    options: Mapping[str, Any]


ADD_LINES = text("""
    INSERT INTO batch_lines
        (batch_id, number, custom_id, start, size_bytes, url, queue_model, options, state)
    SELECT :id, l.number, l.custom_id, l.start, l.size_bytes, l.url, l.queue_model, l.options,
        'waiting'
    FROM ROWS FROM (
        unnest(CAST(:numbers AS int[])), unnest(CAST(:custom_ids AS text[])),
        unnest(CAST(:starts AS bigint[])), unnest(CAST(:sizes AS int[])),
        unnest(CAST(:urls AS text[])), unnest(CAST(:queue_models AS text[])),
        unnest(CAST(:options AS jsonb[]))
    ) l(number, custom_id, start, size_bytes, url, queue_model, options)
    ORDER BY l.number
    ON CONFLICT DO NOTHING
    RETURNING number
""")


def add_lines(session: Session, batch_id: UUID, lines: Sequence[NewLine]) -> list[LineError]:
    """Insert the lines of a part of the file. Returns an error for each line whose `custom_id` an
    earlier line has.

    Only one caller at a time may add lines to a batch.
    """
    if not lines:
        return []
    added = session.scalars(
        ADD_LINES,
        {
            "id": batch_id,
            "numbers": [line.number for line in lines],
            "custom_ids": [line.custom_id for line in lines],
            "starts": [line.start for line in lines],
            "sizes": [line.size_bytes for line in lines],
            "urls": [line.url for line in lines],
            "queue_models": [line.queue_model for line in lines],
            "options": [to_json(line.options) if line.options else None for line in lines],
        },
    ).all()
    new = set(added)
    doubled = {line.custom_id: line.number for line in lines if line.number not in new}
    if not doubled:
        return []
    rows = session.execute(
        select(BatchLine.custom_id, BatchLine.number).where(
            BatchLine.batch_id == batch_id, BatchLine.custom_id.in_(list(doubled))
        )
    )
    first = {row.custom_id: row.number for row in rows}
    return [
        LineError(
            line=line.number,
            code="duplicate_custom_id",
            message=f"custom_id {line.custom_id!r} is that of line {first.get(line.custom_id)}, "
            "too; give each line its own.",
            param="custom_id",
        )
        for line in lines
        if line.number not in new
    ]


def note_read(
    session: Session,
    batch_id: UUID,
    *,
    read_bytes: int,
    read_lines: int,
    lines: int,
    errors: Sequence[LineError],
) -> None:
    """Record how far the file was read, how many lines were added, and what was wrong."""
    session.execute(
        NOTE_READ,
        {
            "id": batch_id,
            "read_bytes": read_bytes,
            "read_lines": read_lines,
            "lines": lines,
            "errors": to_json([error.as_json() for error in errors]),
        },
    )


NOTE_READ = text("""
    UPDATE batches SET read_bytes = :read_bytes, read_lines = :read_lines, total = total + :lines,
        errors = errors || CAST(:errors AS jsonb)
    WHERE id = :id
""")


def note_valid(session: Session, batch_id: UUID) -> None:
    """Record that all lines of the file can be run."""
    session.execute(update(Batch).where(Batch.id == batch_id).values(validated_at=func.now()))


def delete_lines(session: Session, batch_id: UUID) -> None:
    """Delete the lines of a file that cannot be run."""
    session.execute(delete(BatchLine).where(BatchLine.batch_id == batch_id))


def _restart_reading(session: Session, batch_id: UUID) -> None:
    """Delete the lines, so that the batch's step reads the file from its beginning."""
    delete_lines(session, batch_id)
    session.execute(
        update(Batch)
        .where(Batch.id == batch_id)
        .values(read_bytes=0, read_lines=0, total=0, errors=[])
    )


# Opening lines: waiting ones become jobs.


WAITING_FOR = text("""
    WITH RECURSIVE waiting AS (
        (SELECT queue_model FROM batch_lines WHERE batch_id = :id AND state = 'waiting'
         ORDER BY queue_model LIMIT 1)
        UNION ALL
        SELECT (SELECT l.queue_model FROM batch_lines l
                WHERE l.batch_id = :id AND l.state = 'waiting' AND l.queue_model > w.queue_model
                ORDER BY l.queue_model LIMIT 1)
        FROM waiting w WHERE w.queue_model IS NOT NULL
    )
    SELECT queue_model FROM waiting WHERE queue_model IS NOT NULL LIMIT :limit
""")
OPEN_AT = text("""
    SELECT queue_model, count(*) AS lines FROM batch_lines
    WHERE batch_id = :id AND state = 'open' GROUP BY queue_model
""")
QUEUE_MODELS_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which `queue_model` lines wait for, and how many lines of each are open."""

    waiting: Sequence[str]
    open: Mapping[str, int]

    @property
    def count(self) -> int:
        return len({*self.waiting, *self.open})


def shares(session: Session, batch_id: UUID) -> Shares:
    """The lines that have not ended, by `queue_model`. At most `QUEUE_MODELS_LIMIT` waiting ones
    are listed: each costs one look into an index, however many lines there are."""
    values = {"id": batch_id, "limit": QUEUE_MODELS_LIMIT}
    return Shares(
        waiting=session.scalars(WAITING_FOR, values).all(),
        open={row.queue_model: row.lines for row in session.execute(OPEN_AT, {"id": batch_id})},
    )


@dataclass(frozen=True, kw_only=True)
class WaitingLine:
    """`job_id` is its earlier job, which failed; None if it has had none."""

    number: int
    custom_id: str
    start: int
    size_bytes: int
    job_id: UUID | None


WAITING_LINES = text("""
    SELECT l.number, l.custom_id, l.start, l.size_bytes, l.job_id
    FROM ROWS FROM (
        unnest(CAST(:queue_models AS text[])), unnest(CAST(:rooms AS int[]))
    ) s(queue_model, room) CROSS JOIN LATERAL (
        SELECT * FROM batch_lines b
        WHERE b.batch_id = :id AND b.state = 'waiting' AND b.queue_model = s.queue_model
        ORDER BY b.number LIMIT s.room
    ) l
    ORDER BY l.number LIMIT :limit
""")


def waiting(
    session: Session, batch_id: UUID, rooms: Mapping[str, int], *, limit: int, limit_bytes: int
) -> tuple[list[WaitingLine], bool]:
    """The first waiting lines: at most `rooms[queue_model]` of each `queue_model`, `limit` in all,
    and no more than `limit_bytes`, or one line. And whether there may be more."""
    values = {"id": batch_id, "queue_models": list(rooms), "rooms": list(rooms.values())}
    rows = session.execute(WAITING_LINES, values | {"limit": limit}).all()
    lines: list[WaitingLine] = []
    size = 0
    for row in rows:
        size += row.size_bytes
        if lines and size > limit_bytes:
            break
        lines.append(WaitingLine(**row._mapping))
    return lines, len(rows) == limit or len(lines) < len(rows)


OPEN_LINES = text("""
    UPDATE batch_lines l SET state = 'open', job_id = n.job_id
    FROM ROWS FROM (
        unnest(CAST(:numbers AS int[])), unnest(CAST(:job_ids AS uuid[]))
    ) n(number, job_id)
    WHERE l.batch_id = :id AND l.number = n.number
""")


def note_open(session: Session, batch_id: UUID, job_ids: Mapping[int, UUID]) -> None:
    """Record that these lines are jobs now; `job_ids` is by the lines' numbers."""
    if not job_ids:
        return
    session.execute(
        OPEN_LINES,
        {"id": batch_id, "numbers": list(job_ids), "job_ids": list(job_ids.values())},
    )
    session.execute(
        update(Batch).where(Batch.id == batch_id).values(open=Batch.open + len(job_ids))
    )


# Settling lines: lines whose jobs have ended are counted and answered.


ENDED_SIZES = text("""
    SELECT l.number, coalesce(pg_column_size(j.input), 0) + coalesce(pg_column_size(j.result), 0)
        + coalesce(j.result_bytes, 0) AS size_bytes
    FROM batch_lines l LEFT JOIN jobs j ON j.id = l.job_id
    WHERE l.batch_id = :id AND l.state = 'open'
      AND (j.id IS NULL OR j.state NOT IN ('queued', 'running'))
    ORDER BY l.number LIMIT :limit
""")


def ended_numbers(
    session: Session, batch_id: UUID, *, limit: int, limit_bytes: int
) -> tuple[list[int], bool]:
    """The numbers of the first open lines whose jobs have ended: at most `limit`, with no more than
    `limit_bytes` of stored data, or one line. And whether there are more."""
    rows = session.execute(ENDED_SIZES, {"id": batch_id, "limit": limit}).all()
    numbers: list[int] = []
    size = 0
    for row in rows:
        size += row.size_bytes
        if numbers and size > limit_bytes:
            break
        numbers.append(row.number)
    return numbers, len(rows) == limit or len(numbers) < len(rows)


LINES = text("""
    SELECT l.number, l.custom_id, l.url, l.queue_model, l.options, l.state AS line_state,
        l.error AS line_error,
        l.job_id, j.state, j.input, j.result, j.result_path, j.error, j.created_at
    FROM batch_lines l LEFT JOIN jobs j ON j.id = l.job_id
    WHERE l.batch_id = :id AND l.number = ANY(CAST(:numbers AS int[])) ORDER BY l.number
""")


@dataclass(frozen=True, kw_only=True)
class LineOutcome:
    """How a line ended, and what its answer is made of. `state` is that of `BatchLine`."""

    number: int
    custom_id: str
    url: str
    queue_model: str
    options: Mapping[str, Any]
    state: str
    job_id: UUID | None
    input: Mapping[str, Any]
    result: Any
    result_path: str | None
    """Where the result lies in the storage, if it is not in `result`."""
    error: Mapping[str, Any]
    created_at: datetime | None
    has_own_error: bool = False
    """Whether `error` has to be stored with the line, because its job did not fail."""


JOB_DELETED = {
    "type": "NotFound",
    "message": "The job of this line is gone; retry the failed lines.",
}


def ended_outcomes(
    session: Session, batch_id: UUID, numbers: Sequence[int], *, has_expired: bool
) -> list[LineOutcome]:
    """The outcomes of open lines whose jobs have ended. With `has_expired`, cancelled jobs count as
    expired: the end of the batch's time stopped them."""
    return [
        _outcome(row, _state_of(row, has_expired)) for row in _lines(session, batch_id, numbers)
    ]


def settled_outcomes(session: Session, batch_id: UUID, numbers: Sequence[int]) -> list[LineOutcome]:
    return [_outcome(row, row.line_state) for row in _lines(session, batch_id, numbers)]


def _lines(session: Session, batch_id: UUID, numbers: Sequence[int]) -> Sequence[Any]:
    return session.execute(LINES, {"id": batch_id, "numbers": list(numbers)}).all()


def _state_of(row: Any, has_expired: bool) -> str:
    if row.state == State.SUCCEEDED:
        return State.SUCCEEDED.value
    if row.state == State.CANCELLED:
        return EXPIRED if has_expired else State.CANCELLED.value
    return State.FAILED.value


def _outcome(row: Any, state: str) -> LineOutcome:
    error = row.line_error or row.error or (JOB_DELETED if row.state is None else {})
    return LineOutcome(
        number=row.number,
        custom_id=row.custom_id,
        url=row.url,
        queue_model=row.queue_model,
        options=as_object(row.options),
        state=state,
        job_id=row.job_id,
        input=as_object(row.input),
        result=row.result,
        result_path=row.result_path,
        error=as_object(error),
        created_at=row.created_at,
    )


SETTLE_LINES = text("""
    WITH changed AS (
        UPDATE batch_lines l SET state = n.state, error = n.error
        FROM ROWS FROM (
            unnest(CAST(:numbers AS int[])), unnest(CAST(:states AS text[])),
            unnest(CAST(:errors AS jsonb[]))
        ) n(number, state, error)
        WHERE l.batch_id = :id AND l.number = n.number AND l.state = :before
        RETURNING l.state
    ), counted AS (
        SELECT count(*) AS lines, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
            count(*) FILTER (WHERE state = 'failed') AS failed,
            count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
            count(*) FILTER (WHERE state = 'expired') AS expired
        FROM changed
    )
    UPDATE batches b SET settled_at = now(),
        open = greatest(b.open - CASE WHEN :before = 'open' THEN c.lines ELSE 0 END, 0),
        succeeded = b.succeeded + c.succeeded, failed = b.failed + c.failed,
        cancelled = b.cancelled + c.cancelled, expired = b.expired + c.expired,
        prompt_tokens = b.prompt_tokens + :prompt_tokens,
        completion_tokens = b.completion_tokens + :completion_tokens
    FROM counted c WHERE b.id = :id
""")


def settle(
    session: Session,
    batch_id: UUID,
    outcomes: Sequence[LineOutcome],
    *,
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
) -> None:
    """Record how open lines ended, and count them."""
    _settle(
        session,
        batch_id,
        before=OPENED,
        states={outcome.number: outcome.state for outcome in outcomes},
        errors={
            outcome.number: outcome.error
            for outcome in outcomes
            if outcome.has_own_error or not outcome.job_id
        },
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def refuse(session: Session, batch_id: UUID, errors: Mapping[int, Mapping[str, Any]]) -> None:
    """Record that waiting lines cannot become jobs, and why."""
    states = dict.fromkeys(errors, State.FAILED.value)
    _settle(session, batch_id, before=WAITING, states=states, errors=errors)


def _settle(
    session: Session,
    batch_id: UUID,
    *,
    before: str,
    states: Mapping[int, str],
    errors: Mapping[int, Mapping[str, Any]],
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
) -> None:
    if not states:
        return
    session.execute(
        SETTLE_LINES,
        {
            "id": batch_id,
            "before": before,
            "numbers": list(states),
            "states": list(states.values()),
            "errors": [to_json(errors[n]) if n in errors else None for n in states],
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        },
    )


SETTLE_NUMBERS = text("""
    WITH changed AS (
        UPDATE batch_lines l SET state = CASE
            WHEN e.state = 'succeeded' THEN 'succeeded'
            WHEN e.state = 'cancelled' AND :has_expired THEN 'expired'
            WHEN e.state = 'cancelled' THEN 'cancelled' ELSE 'failed' END
        FROM (
            SELECT o.number, j.state FROM batch_lines o LEFT JOIN jobs j ON j.id = o.job_id
            WHERE o.batch_id = :id AND o.number = ANY(CAST(:numbers AS int[]))
        ) e
        WHERE l.batch_id = :id AND l.number = e.number AND l.state = 'open'
        RETURNING l.state
    ), counted AS (
        SELECT count(*) AS lines, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
            count(*) FILTER (WHERE state = 'failed') AS failed,
            count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
            count(*) FILTER (WHERE state = 'expired') AS expired
        FROM changed
    )
    UPDATE batches b SET settled_at = now(), open = greatest(b.open - c.lines, 0),
        succeeded = b.succeeded + c.succeeded, failed = b.failed + c.failed,
        cancelled = b.cancelled + c.cancelled, expired = b.expired + c.expired
    FROM counted c WHERE b.id = :id
""")


def settle_numbers(
    session: Session, batch_id: UUID, numbers: Sequence[int], *, has_expired: bool
) -> None:
    """As `settle`, for lines whose answers are written later."""
    if numbers:
        session.execute(
            SETTLE_NUMBERS,
            {"id": batch_id, "numbers": list(numbers), "has_expired": has_expired},
        )


def count_open(session: Session, batch_id: UUID) -> int:
    count: int = session.execute(select(Batch.open).where(Batch.id == batch_id)).scalar_one()
    return count


def forget_job(session: Session, batch_id: UUID, number: int) -> None:
    """Let a waiting line become a new job instead of running its earlier one again."""
    session.execute(
        update(BatchLine)
        .where(BatchLine.batch_id == batch_id, BatchLine.number == number)
        .values(job_id=None)
    )


def end_waiting(session: Session, batch_id: UUID, state: str) -> None:
    """End the waiting lines in `state`: `cancelled` with the batch, or `expired`."""
    count = len(
        session.execute(
            update(BatchLine)
            .where(BatchLine.batch_id == batch_id, BatchLine.state == WAITING)
            .values(state=state)
            .returning(BatchLine.number)
        ).all()
    )
    column = Batch.expired if state == EXPIRED else Batch.cancelled
    session.execute(update(Batch).where(Batch.id == batch_id).values({column: column + count}))


def expire(session: Transaction, batch_id: UUID) -> None:
    """The time is up: stop the lines that run, and end those that wait. The caller has locked the
    batch."""
    jobs.stop_lines(session, batch_id)
    end_waiting(session, batch_id, EXPIRED)
    session.execute(update(Batch).where(Batch.id == batch_id).values(expired_at=func.now()))


# The answer files: parts are appended while the batch runs; its end writes them anew, in order.

SETTLED_SIZES = text("""
    SELECT l.number, coalesce(pg_column_size(j.input), 0) + coalesce(pg_column_size(j.result), 0)
        + coalesce(j.result_bytes, 0) AS size_bytes
    FROM batch_lines l LEFT JOIN jobs j ON j.id = l.job_id
    WHERE l.batch_id = :id AND l.number > :after AND l.state = ANY(CAST(:states AS text[]))
    ORDER BY l.number LIMIT :limit
""")


def settled_numbers(
    session: Session,
    batch_id: UUID,
    *,
    states: Sequence[str],
    after: int,
    limit: int,
    limit_bytes: int,
) -> list[int]:
    """The numbers after `after` of the next lines that ended in one of `states`: at most `limit`,
    with no more than `limit_bytes` of stored data, or one line."""
    values = {"id": batch_id, "after": after, "states": list(states), "limit": limit}
    numbers: list[int] = []
    size = 0
    for row in session.execute(SETTLED_SIZES, values):
        size += row.size_bytes
        if numbers and size > limit_bytes:
            break
        numbers.append(row.number)
    return numbers


def note_file(session: Session, batch_id: UUID, *, is_output: bool, file_id: UUID | None) -> None:
    column = Batch.output_file_id if is_output else Batch.error_file_id
    session.execute(update(Batch).where(Batch.id == batch_id).values({column: file_id}))


def note_closed(session: Session, batch_id: UUID, **usage: int) -> None:
    """Record that the files are complete. `usage` has the token counts of all answers, if known."""
    session.execute(update(Batch).where(Batch.id == batch_id).values(closed_at=func.now(), **usage))


# Running lines again


REOPEN_LINES = text("""
    WITH chosen AS MATERIALIZED (
        SELECT number, state FROM batch_lines
        WHERE batch_id = :id AND state = ANY(CAST(:states AS text[])) FOR UPDATE
    ), changed AS (
        UPDATE batch_lines l SET state = 'waiting', error = NULL FROM chosen
        WHERE l.batch_id = :id AND l.number = chosen.number
    ), counted AS (
        SELECT count(*) AS lines, count(*) FILTER (WHERE state = 'failed') AS failed,
            count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
            count(*) FILTER (WHERE state = 'expired') AS expired
        FROM chosen
    )
    UPDATE batches b SET failed = b.failed - c.failed, cancelled = b.cancelled - c.cancelled,
        expired = b.expired - c.expired, closed_at = NULL, expired_at = NULL,
        finish_by = greatest(b.finish_by, now() + make_interval(secs => :finish_s))
    FROM counted c WHERE b.id = :id
    RETURNING c.lines
""")


def retry(session: Transaction, batch_id: UUID, *, states: Sequence[str], finish_s: float) -> None:
    """Run the lines again that ended in one of `states`. A batch that has ended runs again, and has
    at least `finish_s` seconds.

    Raises NotFound, and Conflict if there are no such lines.
    """
    get(session, batch_id)
    job = jobs.lock(session, batch_id)
    batch = session.scalar(select(Batch).where(Batch.id == batch_id).with_for_update())
    if job is None or batch is None or batch.validated_at is None:
        if job is not None and batch is not None and batch.errors:
            _restart_reading(session, batch_id)
        jobs.redrive(session, batch_id)
        return
    if job.state in ENDED and batch.closed_at is None:
        raise Conflict(f"Batch {batch_id} is being finished; retry it in a moment.")
    if job.state in OPEN and (job.ending is not None or batch.expired_at is not None):
        raise Conflict(f"Batch {batch_id} is ending; retry it when it has ended.")
    values = {"id": batch_id, "states": list(states), "finish_s": finish_s}
    if not session.execute(REOPEN_LINES, values).scalar_one():
        raise Conflict(f"Batch {batch_id} has no lines that are {' or '.join(states)}.")
    if batch.error_file_id is not None:
        # Some of its lines are wrong now; the batch writes a new one.
        delete_file(session, batch.error_file_id)
        note_file(session, batch_id, is_output=False, file_id=None)
    if job.state in ENDED:
        jobs.redrive(session, batch_id, states=ENDED)


def delete_file(session: Session, file_id: UUID) -> None:
    """Delete the row of an answer file, if it exists; the sweeper deletes its bytes."""
    files.delete_later(session, files.delete_all(session, [file_id]))


def delete_later(session: Session, paths: Sequence[str], *, after_s: float) -> None:
    """Let the sweeper delete files from the storage, `after_s` seconds from now: until then
    somebody may be reading them."""
    files.delete_later(
        session, [StoredPath(path=path, is_folder=False) for path in paths], after_s=after_s
    )


# What the API shows


class Status(StrEnum):
    """The status of a batch, in the words of OpenAI's API."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


def status_of(job: Job, batch: Batch | None) -> Status:
    """`finalizing` and `cancelling` last until the files are complete."""
    is_closed = batch is None or batch.closed_at is not None
    if job.state in OPEN:
        if job.ending == State.CANCELLED:
            return Status.CANCELLING
        is_valid = batch is not None and batch.validated_at is not None
        return Status.IN_PROGRESS if is_valid else Status.VALIDATING
    if job.state == State.SUCCEEDED:
        return Status.COMPLETED if is_closed else Status.FINALIZING
    if job.state == State.CANCELLED:
        return Status.CANCELLED if is_closed else Status.CANCELLING
    if as_object(job.error).get("type") != BatchExpired.code:
        return Status.FAILED
    return Status.EXPIRED if is_closed else Status.FINALIZING


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many lines are in which state; `running` counts those whose jobs have not ended."""

    total: int = 0
    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


UNSETTLED = text("""
    SELECT j.state, count(*) AS lines FROM batch_lines l JOIN jobs j ON j.id = l.job_id
    WHERE l.batch_id = :id AND l.state = 'open' AND j.state NOT IN ('queued', 'running')
    GROUP BY j.state
""")


def counts(session: Session, batch: Batch | None) -> Counts:
    """The counts at this moment, which include lines that have ended and are not settled yet."""
    if batch is None:
        return Counts()
    ended_now = {}
    if batch.open:
        ended_now = {row.state: row.lines for row in session.execute(UNSETTLED, {"id": batch.id})}
    settled_lines = batch.succeeded + batch.failed + batch.cancelled + batch.expired
    return Counts(
        total=batch.total,
        waiting=max(0, batch.total - batch.open - settled_lines),
        running=max(0, batch.open - sum(ended_now.values())),
        succeeded=batch.succeeded + ended_now.get(State.SUCCEEDED, 0),
        failed=batch.failed + ended_now.get(State.FAILED, 0),
        cancelled=batch.cancelled + ended_now.get(State.CANCELLED, 0),
        expired=batch.expired,
    )


def next_line(session: Session, batch_id: UUID) -> Job | None:
    """The job of the first queued line, without input and result, which may be large. Its position
    in the queue is that of the batch."""
    job_id = session.scalar(
        select(Job.id)
        .join(BatchLine, BatchLine.job_id == Job.id)
        .where(
            BatchLine.batch_id == batch_id,
            BatchLine.state == OPENED,
            Job.state == State.QUEUED,
        )
        .order_by(BatchLine.number)
        .limit(1)
    )
    return None if job_id is None else jobs.without_contents(session, job_id)
