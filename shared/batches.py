"""Batches in the ledger: their lines, their counts, and the files that their answers go to.

A batch is a job of the kind `batch` with a row in `batches`, and each of its lines a row in
`batch_lines`. A line is `waiting` until the batch's step makes a job of it, then `open`, until the
step finds that the job has ended and *settles* it: in one transaction its state, the counts and a
part of a file with its answer are written. So a line is counted once and answered once, whatever
dies meanwhile. Nothing here commits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bounds import as_object, to_json
from shared.database.transaction import Transaction
from shared.errors import BatchExpired, Conflict, NotFound
from shared.jobs import jobs
from shared.kinds.batch import CLOSING, LineError
from shared.kinds.registry import BATCH
from shared.tables import Batch, BatchLine, File, Job, Step
from shared.vocabulary import ENDED, OPEN, State

WAITING = "waiting"
OPENED = "open"
EXPIRED = "expired"
WITHOUT_RESULT = (State.FAILED.value, State.CANCELLED.value, EXPIRED)


def get(session: Session, batch_id: UUID) -> tuple[Job, Batch | None]:
    """The job of a batch and its row, which there is once its step has begun. Raises NotFound."""
    found = session.execute(_select().where(Job.id == batch_id)).first()
    if found is None:
        raise NotFound(
            f"There is no batch {batch_id}; it may have been removed by retention. "
            "`GET /v1/batches` lists those that there are."
        )
    return found[0], found[1]


def page(session: Session, *, limit: int, before: UUID | None) -> list[tuple[Job, Batch | None]]:
    """The newest batches, newest first, older than `before`."""
    query = _select().order_by(Job.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Job.id < before)
    return [(job, batch) for job, batch in session.execute(query)]


def _select() -> Select[Any]:
    return (
        select(Job, Batch)
        .outerjoin(Batch, Batch.id == Job.id)
        .where(Job.kind == BATCH.name, Job.batch_id.is_(None))
    )


def begin(session: Session, batch_id: UUID, *, finish_by: datetime) -> Batch:
    """The row of a batch whose step begins."""
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
    options: Mapping[str, Any]


ADD_LINES = text("""
    INSERT INTO batch_lines (batch_id, number, custom_id, start, size_bytes, url, options, state)
    SELECT :id, l.number, l.custom_id, l.start, l.size_bytes, l.url, l.options, 'waiting'
    FROM ROWS FROM (
        unnest(CAST(:numbers AS int[])), unnest(CAST(:custom_ids AS text[])),
        unnest(CAST(:starts AS bigint[])), unnest(CAST(:sizes AS int[])),
        unnest(CAST(:urls AS text[])), unnest(CAST(:options AS jsonb[]))
    ) l(number, custom_id, start, size_bytes, url, options)
    ORDER BY l.number
    ON CONFLICT DO NOTHING
    RETURNING number
""")


def add_lines(session: Session, batch_id: UUID, lines: Sequence[NewLine]) -> list[LineError]:
    """Note the lines of a part of the file; errors for those whose `custom_id` an earlier one has.

    The caller is the only one that adds to the batch.
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
            "options": [to_json(line.options) if line.options else None for line in lines],
        },
    ).all()
    new = set(added)
    doubled = {line.custom_id: line.number for line in lines if line.number not in new}
    if not doubled:
        return []
    first = dict(
        session.execute(
            select(BatchLine.custom_id, BatchLine.number).where(
                BatchLine.batch_id == batch_id, BatchLine.custom_id.in_(list(doubled))
            )
        )
        .tuples()
        .all()
    )
    return [
        LineError(
            line=line.number,
            code="duplicate_custom_id",
            message=f"custom_id {line.custom_id!r} is that of line {first.get(line.custom_id)}, "
            "too; give each line one of its own.",
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
    """How far the file was read, how many more lines there are, and what was wrong."""
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
    """All lines of the file can be run."""
    session.execute(update(Batch).where(Batch.id == batch_id).values(validated_at=func.now()))


def drop_lines(session: Session, batch_id: UUID) -> None:
    """Forget the lines of a file that cannot be run, or that is to be read anew."""
    session.execute(delete(BatchLine).where(BatchLine.batch_id == batch_id))
    session.execute(
        update(Batch)
        .where(Batch.id == batch_id)
        .values(read_bytes=0, read_lines=0, total=0, errors=[])
    )


# Opening lines: waiting ones become jobs.


@dataclass(frozen=True, kw_only=True)
class WaitingLine:
    """`job_id` is that of the job that it was before, which failed."""

    number: int
    custom_id: str
    start: int
    size_bytes: int
    job_id: UUID | None


def waiting(
    session: Session, batch_id: UUID, *, limit: int, limit_bytes: int
) -> list[WaitingLine]:
    """The first lines that wait; of all but one, no more bytes than the limit."""
    rows = session.execute(
        select(
            BatchLine.number,
            BatchLine.custom_id,
            BatchLine.start,
            BatchLine.size_bytes,
            BatchLine.job_id,
        )
        .where(BatchLine.batch_id == batch_id, BatchLine.state == WAITING)
        .order_by(BatchLine.number)
        .limit(limit)
    ).all()
    lines: list[WaitingLine] = []
    size = 0
    for row in rows:
        size += row.size_bytes
        if lines and size > limit_bytes:
            break
        lines.append(WaitingLine(**row._mapping))
    return lines


OPEN_LINES = text("""
    UPDATE batch_lines l SET state = 'open', job_id = n.job_id
    FROM ROWS FROM (
        unnest(CAST(:numbers AS int[])), unnest(CAST(:job_ids AS uuid[]))
    ) n(number, job_id)
    WHERE l.batch_id = :id AND l.number = n.number
""")


def note_open(session: Session, batch_id: UUID, job_ids: Mapping[int, UUID]) -> None:
    """Which job each of these lines is."""
    if not job_ids:
        return
    session.execute(
        OPEN_LINES,
        {"id": batch_id, "numbers": list(job_ids), "job_ids": list(job_ids.values())},
    )
    session.execute(
        update(Batch).where(Batch.id == batch_id).values(open=Batch.open + len(job_ids))
    )


# Settling lines: what has ended is counted and answered.


@dataclass(frozen=True, kw_only=True)
class EndedLine:
    """A line whose job has ended; `state` None where the job is gone."""

    number: int
    custom_id: str
    url: str
    options: Mapping[str, Any]
    job_id: UUID
    state: str | None
    input: Any
    result: Any
    result_path: str | None
    error: Mapping[str, Any]
    created_at: datetime | None


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
    """The first open lines whose jobs have ended; of all but one, no more stored bytes than the
    limit. And whether there are more."""
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
    SELECT l.number, l.custom_id, l.url, l.options, l.state AS line_state, l.error AS line_error,
        l.job_id, j.state, j.input, j.result, j.result_path, j.error, j.created_at
    FROM batch_lines l LEFT JOIN jobs j ON j.id = l.job_id
    WHERE l.batch_id = :id AND l.number = ANY(CAST(:numbers AS int[])) ORDER BY l.number
""")
