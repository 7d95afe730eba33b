"""Looks for rows that hold what Sluice never writes: dates beyond the calendar, JSON too deep.

Readers and the sweeper survive them; here they get a name, which `/readyz` shows, so that somebody
can cancel the job or correct the row. All rows are looked at again and again, a few each round.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text

from shared import sweeps
from shared.payloads import Kind
from shared.sqlstates import is_outage
from shared.states import State
from workers.rounds import Item, Round

log = logging.getLogger(__name__)

EARLIEST, LATEST = "0001-01-02 00:00+00", "9999-12-30 00:00+00"
"""Dates that Python can hold in any time zone."""
DEEP = 128
"""Levels of JSON. Answers cannot be made of more than 255, and no field takes half of that."""


LARGE_BYTES = 2**18
PAGE_ROWS = 64
BEHIND = "id > coalesce(CAST(:after AS uuid), '00000000-0000-0000-0000-000000000000')"


def _is_beyond(column: str) -> str:
    words = f"{column} is beyond the calendar"
    return f"CASE WHEN {column} NOT BETWEEN :earliest AND :latest THEN '{words}' END"


def _is_deep(column: str) -> str:
    words = f"{column} nests more than {DEEP} levels deep"
    deep = f"jsonb_path_exists({column}, '$.**{{{DEEP}}}')"
    return f"CASE WHEN {_is_small(column)} AND {deep} THEN '{words}' END"


def _is_no_object(column: str) -> str:
    words = f"{column} is no object"
    other = f"jsonb_typeof({column}) <> 'object'"
    return f"CASE WHEN {_is_small(column)} AND {other} THEN '{words}' END"


def _is_small(column: str) -> str:
    """Large values are left out: to look into them, all of them would have to be read."""
    return f"pg_column_size({column}) < {LARGE_BYTES}"


def _is_none_of(column: str, values: list[str]) -> str:
    names = ", ".join(f"'{value}'" for value in values)
    return f"CASE WHEN {column} NOT IN ({names}) THEN '{column} has an unknown value' END"


@dataclass(frozen=True, kw_only=True)
class Table:
    name: str
    kind: str
    job_id: str
    conditions: tuple[str, ...]

    @property
    def statement(self) -> str:
        return f"""
            SELECT id, {self.job_id} AS job_id,
                array_to_string(ARRAY[{", ".join(self.conditions)}], '; ') AS faults
            FROM {self.name} WHERE {BEHIND}
            ORDER BY id LIMIT :limit
        """


JSON_OF_JOBS = ("input", "metadata", "error", "webhook")
TABLES = (
    Table(
        name="jobs",
        kind="job",
        job_id="id",
        conditions=(
            *map(
                _is_beyond,
                ("run_after", "created_at", "started_at", "finished_at", "deadline_at"),
            ),
            *map(_is_no_object, JSON_OF_JOBS),
            *map(_is_deep, (*JSON_OF_JOBS, "result")),
            _is_none_of("kind", [kind.value for kind in Kind]),
            _is_none_of("state", [state.value for state in State]),
            "CASE WHEN lane NOT IN (0, 1, 2) THEN 'lane has an unknown value' END",
        ),
    ),
    Table(
        name="conversations",
        kind="conversation",
        job_id="NULL::uuid",
        conditions=(
            *map(_is_beyond, ("created_at", "updated_at")),
            _is_no_object("metadata"),
            _is_deep("metadata"),
        ),
    ),
    Table(
        name="versions",
        kind="version",
        job_id="NULL::uuid",
        conditions=(_is_beyond("created_at"), _is_no_object("metadata"), _is_deep("metadata")),
    ),
)


class Inspection:
    """Goes through one table after the other, and then from the start."""

    def __init__(self) -> None:
        self._table = 0
        self._after: UUID | None = None
        self._page = PAGE_ROWS
        self._began: datetime | None = None
        """When it last began with the first table, by the database's clock."""

    def __call__(self, round_: Round) -> None:
        left, ended = round_.limit_rows, 0
        while left > 0 and ended < len(TABLES) and round_.goes_on:
            if self._table == 0 and self._after is None:
                self._begin(round_)
            count = self._look(round_, TABLES[self._table], min(self._page, left))
            left -= count
            if count == 0:
                self._table, self._after = (self._table + 1) % len(TABLES), None
                ended += 1
        with round_.process.ledger.begin() as session:
            sweeps.forget_jobs_that_are_gone(session, round_.part)

    def _begin(self, round_: Round) -> None:
        with round_.process.ledger.begin() as session:
            if self._began is not None:
                sweeps.forget_unmet(session, round_.part, since=self._began)
            self._began = session.execute(select(func.now())).scalar_one()

    def _look(self, round_: Round, table: Table, limit: int) -> int:
        """Look at the next rows of a table; returns how many there were."""
        values: dict[str, Any] = {
            "after": self._after, "limit": limit, "earliest": EARLIEST, "latest": LATEST,
        }  # fmt: skip
        try:
            with round_.process.ledger.read() as session:
                rows = session.execute(text(table.statement), values).all()
        except Exception as error:
            if is_outage(error):
                raise
            self._page = max(1, limit // 4)
            return self._look(round_, table, 1) if limit > 1 else self._skip(round_, table, error)
        if not rows:
            return 0
        self._after, self._page = rows[-1].id, min(PAGE_ROWS, self._page * 2)
        settings = round_.process.settings
        faulty = [row for row in rows if row.faults]
        with round_.process.ledger.begin() as session:
            well = [Item(kind=table.kind, id=row.id).label for row in rows if not row.faults]
            sweeps.forgive_all(session, round_.part, well)
            for row in faulty:
                item = Item(kind=table.kind, id=row.id, job_id=row.job_id)
                is_new = sweeps.note_fault(
                    session, round_.part, item.label, row.faults, job_id=row.job_id,
                    retry_base_s=settings.retry_base_s, retry_cap_s=settings.retry_cap_s,
                )  # fmt: skip
                if is_new:
                    log.error("%s has a value that no program can use: %s", item.label, row.faults)
        return len(rows)

    def _skip(self, round_: Round, table: Table, error: Exception) -> int:
        """Note the one row that cannot even be looked at, and go on behind it."""
        query = text(f"SELECT id FROM {table.name} WHERE {BEHIND} ORDER BY id LIMIT 1")
        with round_.process.ledger.read() as session:
            id_ = session.scalar(query, {"after": self._after})
        if id_ is None:
            return 0
        self._after = id_
        job_id = id_ if table.kind == "job" else None
        round_.blame(Item(kind=table.kind, id=id_, job_id=job_id), error)
        return 1
