"""What the sweeper notes for others to read: when it last ran, and which rows it cannot handle.

A row that cannot be handled is left alone for a while that doubles with each try, so that it
neither slows down each sweep nor stands before the rows behind it. `/readyz` names it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    SQLColumnExpression,
    String,
    cast,
    delete,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.tables import Job, QueueState, SweepFault
from shared.vocabulary import OPEN, Queue

MESSAGE_CHARS = 500


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`item` is empty where a part of the sweeper fails as a whole."""

    part: str
    item: str
    job_id: UUID | None
    message: str
    first_at: datetime


def note_sweep(session: Session) -> None:
    row = insert(QueueState).values(name=Queue.CONTROL.value, swept_at=func.clock_timestamp())
    changed = {"swept_at": func.clock_timestamp()}
    session.execute(row.on_conflict_do_update(index_elements=["name"], set_=changed))


def age_s(session: Session) -> float | None:
    """How long ago the last sweep ended, by the database's clock; None before the first."""
    age: timedelta | None = session.scalar(
        select(func.clock_timestamp() - QueueState.swept_at).where(
            QueueState.name == Queue.CONTROL.value
        )
    )
    return None if age is None else max(0.0, age.total_seconds())


def note_fault(
    session: Session,
    part: str,
    item: str,
    message: str,
    *,
    job_id: UUID | None = None,
    retry_base_s: float,
    retry_cap_s: float,
) -> bool:
    """Note one more failure of an item, which `is_left_alone` from now on for some seconds.

    Returns whether it is the first one.
    """
    row = insert(SweepFault).values(
        part=part, item=item, job_id=job_id, message=message[:MESSAGE_CHARS],
        retry_at=func.now() + timedelta(seconds=min(retry_base_s, retry_cap_s)),
    )  # fmt: skip
    pause = func.least(retry_cap_s, retry_base_s * func.power(2, func.least(SweepFault.tries, 30)))
    tries = session.scalar(
        row.on_conflict_do_update(
            index_elements=["part", "item"],
            set_={
                "message": row.excluded.message,
                "job_id": row.excluded.job_id,
                "tries": SweepFault.tries + 1,
                "last_at": func.now(),
                "retry_at": func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause),
            },
        ).returning(SweepFault.tries)
    )
    return tries == 1


def is_left_alone(part: str, prefix: str, id_: SQLColumnExpression[Any]) -> ColumnElement[bool]:
    """The condition that an item, `prefix` and the row's id, failed and is not to be tried yet."""
    item = literal(f"{prefix} ", String) + cast(id_, String)
    return exists().where(
        SweepFault.part == part, SweepFault.item == item, SweepFault.retry_at > func.now()
    )


def forgive(session: Session, part: str, item: str) -> None:
    session.execute(delete(SweepFault).where(SweepFault.part == part, SweepFault.item == item))


def forgive_all(session: Session, part: str, items: list[str]) -> None:
    session.execute(delete(SweepFault).where(SweepFault.part == part, SweepFault.item.in_(items)))


def have_faults(session: Session) -> bool:
    return session.scalar(select(exists().select_from(SweepFault))) or False


def forget_faults(session: Session, parts: list[str], *, older_than_s: float) -> None:
    """Forget the rows of these parts whose job has ended, and all that were not met for long."""
    is_open = exists().where(Job.id == SweepFault.job_id, Job.state.in_(OPEN))
    session.execute(
        delete(SweepFault).where(
            SweepFault.part.in_(parts), SweepFault.job_id.is_not(None), ~is_open
        )
    )
    session.execute(
        delete(SweepFault).where(
            SweepFault.part.in_(parts),
            SweepFault.last_at < func.now() - timedelta(seconds=older_than_s),
        )
    )


def forget_unmet(session: Session, part: str, *, since: datetime) -> None:
    """Forget what a part noted before and has not met again."""
    session.execute(
        delete(SweepFault).where(
            SweepFault.part == part, SweepFault.item != "", SweepFault.last_at < since
        )
    )


def forget_jobs_that_are_gone(session: Session, part: str) -> None:
    session.execute(
        delete(SweepFault).where(
            SweepFault.part == part,
            SweepFault.job_id.is_not(None),
            ~exists().where(Job.id == SweepFault.job_id),
        )
    )


def faults(session: Session, *, limit: int) -> list[Fault]:
    """Parts that fail first, then rows, the newest first."""
    rows = session.scalars(
        select(SweepFault)
        .order_by(SweepFault.item != "", SweepFault.first_at.desc(), SweepFault.item)
        .limit(limit)
    )
    return [
        Fault(
            part=row.part, item=row.item, job_id=row.job_id, message=row.message,
            first_at=row.first_at,
        )
        for row in rows
    ]  # fmt: skip


def count_faulty_rows(session: Session) -> int:
    count = session.scalar(
        select(func.count(func.distinct(SweepFault.item))).where(SweepFault.item != "")
    )
    return count or 0
