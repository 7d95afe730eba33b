"""Checks: whether a collection and the vector store agree, and when one has to be made.

A check is a job of the kind `check`; here is what it leaves behind for others to read, and which
collections are due for one: those whose store was away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bounds import as_object
from shared.tables import Collection, CollectionCheck, Job
from shared.vocabulary import OPEN


class CheckState(StrEnum):
    OK = "ok"
    """The store has what it is to have, and nothing else."""
    MENDED = "mended"
    """It differed, and was mended."""
    DAMAGED = "damaged"
    """It differs."""


@dataclass(kw_only=True)
class CheckCounts:
    """What a check has found; vectors, unless it says otherwise."""

    checked: int = 0
    """Chunks whose vectors the ledger has noted, in all indexes of the collection."""
    missing: int = 0
    surplus: int = 0
    """Of chunks that there are no more, or that belong to another collection."""
    stale: int = 0
    """With another text or other metadata than the chunk."""
    sampled: int = 0
    """Made again by the model, and compared."""
    wrong: int = 0
    """Of those, the ones that are not the model's."""
    foreign: int = 0
    """That Sluice did not write. They are no fault."""
    leftover: int = 0
    """Rows and full-text entries of documents that were erased."""

    @classmethod
    def read(cls, counts: Any) -> "CheckCounts":
        """Of JSON; what is no number counts 0."""
        values = as_object(counts)
        names = [field.name for field in fields(cls)]
        return cls(**{n: values[n] for n in names if type(values.get(n)) is int})

    def add(self, other: "CheckCounts") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def faults(self) -> int:
        return self.missing + self.surplus + self.stale + self.wrong + self.leftover


@dataclass(frozen=True, kw_only=True)
class LastCheck:
    finished_at: datetime
    job_id: UUID | None
    state: CheckState
    counts: CheckCounts


def note(
    session: Session, collection_id: UUID, job_id: UUID, state: CheckState, counts: CheckCounts
) -> None:
    """Note the result of a check. The collection must be held."""
    result = {
        "finished_at": func.now(),
        "job_id": job_id,
        "state": state.value,
        "counts": asdict(counts),
    }
    row = insert(CollectionCheck).values(collection_id=collection_id, **result)
    session.execute(row.on_conflict_do_update(index_elements=["collection_id"], set_=result))


def last_of(session: Session, collection_ids: Iterable[UUID]) -> dict[UUID, LastCheck]:
    """The last checks of these collections, of those that had one."""
    rows = session.scalars(
        select(CollectionCheck).where(
            CollectionCheck.collection_id.in_(list(collection_ids)),
            CollectionCheck.finished_at.is_not(None),
        )
    )
    return {
        row.collection_id: LastCheck(
            finished_at=row.finished_at,
            job_id=row.job_id,
            state=_state(row.state),
            counts=CheckCounts.read(row.counts),
        )
        for row in rows
        if row.finished_at is not None
    }


def _state(value: str | None) -> CheckState:
    try:
        return CheckState(value or "")
    except ValueError:
        return CheckState.DAMAGED  # of a newer version


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Over the last checks of all collections."""

    collections: dict[CheckState, int]
    unchecked: int
    """Collections that had none."""
    due: int
    """Collections that are to have one."""
    counts: CheckCounts
    last_at: datetime | None
    """When the newest one ended."""
    first_at: datetime | None
    """When the oldest one did."""


def totals(session: Session) -> Totals:
    names = [field.name for field in fields(CheckCounts)]
    sums = ", ".join(
        f"coalesce(sum(CASE WHEN jsonb_typeof(k.counts -> '{name}') = 'number'"
        f" THEN (k.counts ->> '{name}')::numeric END), 0) AS {name}"
        for name in names
    )
    row = session.execute(
        text(f"""
            SELECT count(*) FILTER (WHERE k.finished_at IS NULL) AS unchecked_n,
                count(*) FILTER (WHERE k.due_at IS NOT NULL) AS due_n,
                count(*) FILTER (WHERE k.finished_at IS NOT NULL AND k.state = 'ok') AS ok_n,
                count(*) FILTER (WHERE k.finished_at IS NOT NULL AND k.state = 'mended')
                    AS mended_n,
                count(*) FILTER (WHERE k.finished_at IS NOT NULL
                    AND k.state NOT IN ('ok', 'mended')) AS damaged_n,
                max(k.finished_at) AS last_at, min(k.finished_at) AS first_at, {sums}
            FROM collections c LEFT JOIN collection_checks k ON k.collection_id = c.id
            WHERE c.erasing_at IS NULL AND c.importing_job_id IS NULL
        """)
    ).one()
    return Totals(
        collections={
            CheckState.OK: row.ok_n,
            CheckState.MENDED: row.mended_n,
            CheckState.DAMAGED: row.damaged_n,
        },
        unchecked=row.unchecked_n,
        due=row.due_n,
        counts=CheckCounts(**{name: int(getattr(row, name)) for name in names}),
        last_at=row.last_at,
        first_at=row.first_at,
    )


# When a check is due


def note_server(
    session: Session, url: str, *, is_well: bool, away_s: float, unseen_s: float
) -> int | None:
    """Note whether a server of the store is healthy. Where it is again, after `away_s` at least, or
    where nobody has looked for `unseen_s`, all collections that it may have are due for a check:
    returns how many there are, None otherwise."""
    is_back = session.scalar(
        text("""
            SELECT away_at <= now() - make_interval(secs => :away_s)
                OR seen_at <= now() - make_interval(secs => :unseen_s)
            FROM store_servers WHERE url = :url FOR UPDATE
        """),
        {"url": url, "away_s": away_s, "unseen_s": unseen_s},
    )
    session.execute(
        text("""
            INSERT INTO store_servers AS s (url, seen_at, away_at)
            VALUES (:url, now(), CASE WHEN :is_well THEN NULL ELSE now() END)
            ON CONFLICT (url) DO UPDATE SET
                seen_at = CASE WHEN :is_well THEN now() ELSE s.seen_at END,
                away_at = CASE WHEN :is_well THEN NULL ELSE coalesce(s.away_at, now()) END
        """),
        {"url": url, "is_well": is_well},
    )
    return _due_on(session, url) if is_well and is_back else None


def _due_on(session: Session, server: str) -> int:
    """Let the collections that may be on a server have a check as soon as may be. Returns how many
    they are. Those without documents need none."""
    due = session.execute(
        text("""
            INSERT INTO collection_checks AS k (collection_id, due_at)
            SELECT c.id, now() FROM collections c
            WHERE c.erasing_at IS NULL AND c.importing_job_id IS NULL
                AND EXISTS (SELECT FROM documents d WHERE d.collection_id = c.id)
                AND EXISTS (
                    SELECT FROM vector_indexes i WHERE i.collection_id = c.id
                        AND (i.server IS NULL OR i.server = :server))
            FOR KEY SHARE OF c
            ON CONFLICT (collection_id) DO UPDATE SET due_at = coalesce(k.due_at, now())
            RETURNING 1
        """),
        {"server": server},
    )
    return len(due.all())


def due_if_damaged(session: Session, collection_id: UUID) -> None:
    """Let a collection be checked again, if the last check has left it damaged."""
    session.execute(
        update(CollectionCheck)
        .where(
            CollectionCheck.collection_id == collection_id,
            CollectionCheck.state == CheckState.DAMAGED,
        )
        .values(due_at=func.coalesce(CollectionCheck.due_at, func.now()))
    )


def due(session: Session, kinds: Sequence[str], *, limit: int) -> list[UUID]:
    """Collections that are due for a check, and of which no job of these kinds is open."""
    is_at_work = exists().where(
        Job.collection == Collection.name,
        Job.kind.in_(kinds),
        Job.state.in_(OPEN),
        Job.batch_id.is_(None),
    )
    rows = session.scalars(
        select(CollectionCheck.collection_id)
        .join(Collection, Collection.id == CollectionCheck.collection_id)
        .where(
            CollectionCheck.due_at.is_not(None),
            Collection.is_visible(),
            ~is_at_work,
        )
        .order_by(CollectionCheck.due_at, CollectionCheck.collection_id)
        .limit(limit)
    )
    return list(rows)


def clear_due(session: Session, collection_id: UUID) -> str | None:
    """The name of a collection that is due, which no longer is; None if it was not any more."""
    return session.scalar(
        update(CollectionCheck)
        .where(
            CollectionCheck.collection_id == collection_id,
            CollectionCheck.due_at.is_not(None),
            Collection.id == CollectionCheck.collection_id,
            Collection.is_visible(),
        )
        .values(due_at=None)
        .returning(Collection.name)
    )
