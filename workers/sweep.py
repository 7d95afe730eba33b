"""The sweeper: takes back expired leases, ends overdue jobs, rings for unrung steps, tidies up.

Whatever was lost with Redis or with a worker is found here, in Postgres. It runs in the process
`python -m workers beat`, of which there may be several: each loop is at work in one of them at a
time. It waits for nobody: leases, deadlines and held turns have a loop of their own, which needs
Postgres alone; rings, vectors, retention, the storage, the look at bad rows, the lexical index and
the look at the vector store have theirs. A round
of each part is bounded in rows and seconds, a part that fails stops no other, and a row that cannot
be handled stops no other row: it is noted for `/readyz` and left alone for a while.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import and_, delete, exists, func, or_, select, text, tuple_, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased

from shared import files
from shared.database.sqlstates import first_line, is_outage
from shared.database.transaction import Transaction
from shared.documents import attachments, checks, collections, containers, erasure, imports, remote
from shared.errors import ModelNotServed, SluiceError, Timeout
from shared.files import StoredPath
from shared.jobs import jobs, schedules, steps, submission, sweeps, turns
from shared.jobs.queues import lacks_worker
from shared.jobs.submission import NewJob
from shared.kinds.check import CheckInput
from shared.kinds.erase import EraseInput
from shared.kinds.registry import BATCH, CHECK, ERASE, EXPORT, KINDS, REBUILD
from shared.tables import Collection, File, Job, PathToDelete, Step, Worker
from shared.vector_stores import configured_store
from shared.vocabulary import ENDED, OPEN, Lane, State
from workers.attempts.process import Process
from workers.attempts.retry import lost_worker, settle_failure
from workers.attempts.runner import Handlers
from workers.ingest.erasure import Garbage, StrayVectors, drop_indexes
from workers.ingest.indexing import LexicalUpkeep
from workers.rounds import Item, Round

# Looks for rows that hold what Sluice never writes: dates beyond the calendar, JSON too deep.
#
# Readers and the sweeper survive them; here they get a name, which `/readyz` shows, so that
# somebody can cancel the job or correct the row. All rows are looked at again and again, a
# few each round.

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
            _is_none_of("kind", list(KINDS)),
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
            with round_.process.ledger.read_single() as session:
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
        with round_.process.ledger.read_single() as session:
            id_ = session.scalar(query, {"after": self._after})
        if id_ is None:
            return 0
        self._after = id_
        job_id = id_ if table.kind == "job" else None
        round_.blame(Item(kind=table.kind, id=id_, job_id=job_id), error)
        return 1


INSPECTION = "inspection"
LOCK = 0x51CE_5EEE  # any fixed number; each loop has one behind it
RINGS = 1000
"""Messages that may wait; more than all workers take until the next sweep is of no use."""
STALE_SWEEPS = 10
STALE_AT_LEAST_S = 10.0
STOP_S = 5.0

SweepPart = Callable[[Round], None]


@dataclass(frozen=True, kw_only=True)
class SweepLoop:
    """Parts that run one after the other, in a thread of their own."""

    number: int
    process: Process
    interval_s: float
    parts: Mapping[str, SweepPart]


# Retention: collections that expire, jobs that ended, uploads that nobody uses and workers that are
# gone, after their time.
#
# Rows go a few at a time. The transaction that deletes a row writes its paths in the storage into
# `paths_to_delete`. They are deleted after that, one by one; one that fails is tried again later.
# Other documents stay until they are erased.

ROWS_AT_ONCE = 100
EXPIRY = "expiry"
"""The name that erasures of expired collections are submitted under."""
INTEGRITY = "integrity"
"""The same of checks after the store was away."""
WORKERS_KEPT = timedelta(days=1)


class Retention:
    """The parts of the sweeper that forget rows."""

    def __init__(self) -> None:
        self._files_after: tuple[datetime, UUID] | None = None
        """Behind which of the old uploads the next round looks; those before it are in use."""
        self._containers_after: tuple[UUID, str] | None = None
        self._remote_after: tuple[UUID, str] | None = None

    @property
    def parts(self) -> Mapping[str, Any]:
        return {
            "files of vector stores": settle_attachments,
            "expiry of collections": erase_expired,
            "retention of jobs": forget_jobs,
            "retention of uploads": self.forget_files,
            "retention of workers": forget_workers,
            "containers": self.forget_containers,
            "remote documents": self.forget_remote,
        }

    def forget_files(self, round_: Round) -> None:
        """Forget uploads that no open job needs. Those in use are read once a round."""
        process = round_.process
        kept = timedelta(days=process.settings.retention_days)
        created = tuple_(File.created_at, File.id)
        query = (
            select(File.id, File.created_at)
            .where(
                or_(File.created_at < func.now() - kept, File.expires_at < func.now()),
                ~sweeps.is_left_alone(round_.part, "file", File.id),
            )
            .order_by(created)
            .limit(round_.limit_rows)
        )
        if self._files_after is not None:
            query = query.where(created > tuple_(*self._files_after))
        with process.ledger.read() as session:
            old = session.execute(query).all()
            in_use = jobs.files_in_use(session, [row.id for row in old])
        self._files_after = (old[-1].created_at, old[-1].id) if old else None
        unused = [row.id for row in old if str(row.id) not in in_use]
        _forget_batches(round_, "file", unused, _forget_files)

    def forget_containers(self, round_: Round) -> None:
        """Forget archives of which nothing is left. All rows are looked at, some each round."""
        with round_.process.ledger.begin() as session:
            self._containers_after = containers.forget_empty(
                session, self._containers_after, limit=round_.limit_rows
            )

    def forget_remote(self, round_: Round) -> None:
        """Forget what servers said of documents that are gone, and hosts that were left alone for
        long enough."""
        with round_.process.ledger.begin() as session:
            self._remote_after = remote.forget_unused(
                session, self._remote_after, limit=round_.limit_rows
            )
            remote.forget_hosts(session, limit=round_.limit_rows)


def forget_jobs(round_: Round) -> None:
    """Lines of batches go when their batch has ended so long ago, and the batch behind them."""
    is_old = func.now() - timedelta(days=round_.process.settings.retention_days)
    batch, line = aliased(Job), aliased(Job)
    not_left_alone = ~sweeps.is_left_alone(round_.part, "job", Job.id)
    lines = (
        select(Job.id)
        .join(batch, batch.id == Job.batch_id)
        .where(batch.finished_at < is_old, batch.state.in_(ENDED), not_left_alone)
        .limit(round_.limit_rows)
    )
    others = (
        select(Job.id)
        .where(
            Job.finished_at < is_old,
            Job.state.in_(ENDED),
            Job.batch_id.is_(None),
            or_(Job.kind != BATCH.name, ~exists().where(line.batch_id == Job.id)),
            not_left_alone,
        )
        .order_by(Job.finished_at)
        .limit(round_.limit_rows)
    )
    for query in (lines, others):
        with round_.process.ledger.read_single() as session:
            ids = session.scalars(query).all()
        _forget_batches(round_, "job", ids, _forget_jobs)


def settle_attachments(round_: Round) -> None:
    """Note what became of files of vector stores, while their jobs are remembered."""
    with round_.process.ledger.begin() as session:
        attachments.settle(session, limit=round_.limit_rows)


def erase_expired(round_: Round) -> None:
    """Erase the collections that nobody has used for as long as they are to be kept, and what
    imports have left that did not succeed."""
    process = round_.process
    is_due = or_(
        and_(collections.is_expired(), Collection.is_visible()),
        and_(imports.is_abandoned(), Collection.erasing_at.is_(None)),
    )
    with process.ledger.begin() as noting:
        collections.note_uses(noting)
    with process.ledger.read_single() as session:
        ids = session.scalars(
            select(Collection.id)
            .where(
                is_due,
                ~sweeps.is_left_alone(round_.part, "collection", Collection.id),
            )
            .order_by(Collection.id)
            .limit(round_.limit_rows)
        ).all()

    def erase(session: Transaction, item: Item) -> None:
        row = select(Collection.name).where(Collection.id == item.id, is_due)
        name = session.scalar(row.with_for_update())
        if name is None:
            return
        new = NewJob(
            kind=ERASE,
            input=EraseInput(collection=name).model_dump(mode="json"),
            fair_key=EXPIRY,
            lane=Lane.BULK,
            max_attempts=process.settings.max_attempts,
        )
        submission.submit(session, new)
        erasure.hide_collection(session, name)

    round_.handle_all((Item(kind="collection", id=id_) for id_ in ids), erase)


def forget_workers(round_: Round) -> None:
    with round_.process.ledger.begin() as session:
        session.execute(delete(Worker).where(Worker.last_seen_at < func.now() - WORKERS_KEPT))


def delete_paths(round_: Round) -> None:
    """Delete from the storage what retention has noted; what cannot be deleted is tried later."""
    process = round_.process
    with process.ledger.read_single() as session:
        paths = session.execute(
            select(PathToDelete.path, PathToDelete.is_folder)
            .where(PathToDelete.retry_at <= func.now())
            .order_by(PathToDelete.retry_at)
            .limit(round_.limit_rows)
        ).all()
    for path, is_folder in paths:
        if not round_.goes_on:
            break
        try:
            if is_folder:
                process.storage.delete_folder(path)
            else:
                process.storage.delete(path)
        except Exception as error:  # of whatever library the storage's URL stands for
            log.warning("could not delete %s; tried again later: %s", path, error)
            _postpone(round_, path)
            continue
        with process.ledger.begin() as session:
            session.execute(delete(PathToDelete).where(PathToDelete.path == path))


def _postpone(round_: Round, path: str) -> None:
    settings = round_.process.settings
    pause = func.least(
        settings.retry_cap_s,
        settings.retry_base_s * func.power(2, func.least(PathToDelete.tries, 30)),
    )
    with round_.process.ledger.begin() as session:
        session.execute(
            update(PathToDelete)
            .where(PathToDelete.path == path)
            .values(
                tries=PathToDelete.tries + 1,
                retry_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause),
            )
        )


def _forget_batches(round_: Round, kind: str, ids: Sequence[UUID], forget: Any) -> None:
    """Forget rows a batch at a time; one by one where a batch fails."""
    for first in range(0, len(ids), ROWS_AT_ONCE):
        if not round_.goes_on:
            return
        batch = ids[first : first + ROWS_AT_ONCE]
        try:
            with round_.process.ledger.begin() as session:
                forget(session, batch)
        except Exception as error:
            log.info("%s: a batch goes row by row: %s", round_.part, error)
            items = [Item(kind=kind, id=id_) for id_ in batch]
            round_.handle_all(items, lambda session, item: forget(session, [item.id]))


def _forget_jobs(session: Session, ids: Sequence[UUID]) -> None:
    folders = [jobs.result_folder(id_) for id_ in jobs.forget(session, ids)]
    files.delete_later(session, [StoredPath(path=path, is_folder=True) for path in folders])


def _forget_files(session: Session, ids: Sequence[UUID]) -> None:
    files.delete_later(session, files.delete_all(session, ids))


class Sweeper:
    """`sweep` runs all loops once; `start` runs each in a thread until `stop`.

    `quick` has other connections for what must not wait, with shorter timeouts.
    """

    def __init__(
        self, process: Process, handlers: Handlers, *, quick: Process | None = None
    ) -> None:
        self._handlers = handlers
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failing: dict[str, str | None] = {}
        quick = quick or process
        soon_s, later_s = process.settings.sweep_interval_s, process.settings.tidy_interval_s
        self._quick = SweepLoop(
            number=0,
            process=quick,
            interval_s=soon_s,
            parts={
                "take back": take_back,
                "overdue": end_overdue,
                "unserved": fail_unserved,
                "held turns": let_turns_go,
                "schedules": fire_schedules,
            },
        )
        slow: list[Mapping[str, SweepPart]] = [
            {
                "garbage": Garbage(),
                "stray vectors": StrayVectors(),
                "vector indexes": drop_indexes,
            },
            Retention().parts,
            {"storage": delete_paths},
            {INSPECTION: Inspection()},
            {"lexical index": LexicalUpkeep()},
        ]
        watch = {"vector store": watch_store, "checks": submit_checks}
        self._loops = [
            self._quick,
            SweepLoop(number=1, process=quick, interval_s=soon_s, parts={"ring": ring}),
            *(
                SweepLoop(number=number, process=process, interval_s=later_s, parts=parts)
                for number, parts in enumerate(slow, start=2)
            ),
            SweepLoop(number=2 + len(slow), process=process, interval_s=soon_s, parts=watch),
        ]

    def sweep(self) -> bool:
        """One round of everything; False if another sweeper is at it."""
        was_mine = [self._round(loop) for loop in self._loops]
        return all(was_mine)

    def start(self) -> None:
        # What is announced goes through Redis, which the quick loop must not wait for.
        self._quick.process.ledger.hold_announcements()
        for loop in self._loops:
            name = f"sweep-{next(iter(loop.parts))}"
            thread = threading.Thread(target=self._run, args=(loop,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Let each loop end after the row that it is at; one that hangs is not waited for."""
        self._stop.set()
        ends = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _run(self, loop: SweepLoop) -> None:
        last_words = ""
        while not self._stop.is_set():
            try:
                self._round(loop)
                last_words = ""
            except Exception as error:
                # Postgres is away, most likely. The loop goes on whatever it is.
                words = first_line(error)
                if words != last_words:  # said once, not each second
                    log.warning("a sweep failed, and is tried again: %s", words)
                last_words = words
            self._stop.wait(loop.interval_s)

    def _round(self, loop: SweepLoop) -> bool:
        """False if another sweeper is at it."""
        with self._only_one(loop) as is_mine:
            if not is_mine:
                return False
            for name, part in loop.parts.items():
                self._run_part(loop.process, name, part)
            with loop.process.ledger.begin() as session:
                if loop is self._quick:
                    sweeps.note_sweep(session)
                # The inspection, which takes long to meet a row again, forgets its own.
                if INSPECTION not in loop.parts and sweeps.have_faults(session):
                    settings = loop.process.settings
                    kept_s = 2 * (settings.retry_cap_s + settings.tidy_interval_s)
                    sweeps.forget_faults(session, list(loop.parts), older_than_s=kept_s)
        return True

    def _run_part(self, process: Process, name: str, part: SweepPart) -> None:
        try:
            part(Round(process, self._handlers, name, self._stop))
        except Exception as error:
            self._note_failure(process, name, error)
        else:
            # Unknown after a start: another process may have noted it.
            if self._failing.pop(name, "") is not None:
                with process.ledger.begin() as session:
                    sweeps.forgive(session, name, "")
            self._failing[name] = None

    def _note_failure(self, process: Process, name: str, error: Exception) -> None:
        words = error.message if isinstance(error, SluiceError) else first_line(error)
        if self._failing.get(name) != words:  # said once, not each second
            known = isinstance(error, SluiceError | SQLAlchemyError | RedisError | OSError)
            log.warning("%s failed, and is tried again: %s", name, words, exc_info=not known)
        self._failing[name] = words
        settings = process.settings
        try:
            with process.ledger.begin() as session:
                sweeps.note_fault(
                    session, name, "", words,
                    retry_base_s=settings.retry_base_s, retry_cap_s=settings.retry_cap_s,
                )  # fmt: skip
        except SQLAlchemyError as away:
            log.debug("the failure of %s could not be noted: %s", name, first_line(away))

    @contextmanager
    def _only_one(self, loop: SweepLoop) -> Iterator[bool]:
        """Whether this process has the loop for itself; the lock goes with the connection.

        It spares work and is not needed for its being right. So a sweeper that has it and stands
        still, as in a process that was stopped, does not keep the others from the quick loop.
        """
        lock = LOCK + loop.number
        with loop.process.ledger.engine.connect() as opened:
            connection = opened.execution_options(isolation_level="AUTOCOMMIT")
            is_mine = bool(connection.scalar(select(func.pg_try_advisory_lock(lock))))
            if not is_mine:
                yield loop is self._quick and _is_stale(loop.process)
                return
            try:
                yield True
            finally:
                try:
                    connection.execute(select(func.pg_advisory_unlock(lock)))
                except SQLAlchemyError:
                    connection.invalidate()  # with it, the server lets go of the lock


def _is_stale(process: Process) -> bool:
    """Whether no sweep has ended for so long that who has the lock cannot be at work."""
    with process.ledger.read_single() as session:
        age_s = sweeps.age_s(session)
    limit_s = max(STALE_AT_LEAST_S, STALE_SWEEPS * process.settings.sweep_interval_s)
    return age_s is not None and age_s > limit_s


def take_back(round_: Round) -> None:
    """Hand expired attempts to the retry policy."""
    ledger, handlers = round_.process.ledger, round_.handlers
    with ledger.read_single() as session:
        expired_steps = steps.expired(
            session,
            ~sweeps.is_left_alone(round_.part, "step", Step.id),
            limit=round_.limit_rows,
        )

    def settle(session: Transaction, item: Item) -> None:
        claim = steps.take(session, item.id)
        if claim is None:
            return
        log.warning("lease of step %s (%s) has ended", claim.step_id, claim.name)
        handler = handlers.get(claim.name)
        if steps.is_ending(session, claim):
            steps.abandon(session, claim)
            return
        if handler is not None and handler.absorb is not None:
            claim = replace(claim, payload=steps.payload_of(session, claim))
        settle_failure(session, round_.process.settings, handler, claim, lost_worker(claim))

    round_.handle_all(
        (Item(kind="step", id=id_, job_id=job_id) for id_, job_id in expired_steps), settle
    )


def end_overdue(round_: Round) -> None:
    """Fail the jobs that ran longer than their `timeout_s`."""
    with round_.process.ledger.read_single() as session:
        ids = session.scalars(
            select(Job.id)
            .where(
                Job.state.in_(OPEN),
                Job.deadline_at < func.now(),
                Job.ending.is_(None),
                ~sweeps.is_left_alone(round_.part, "job", Job.id),
            )
            .order_by(Job.deadline_at)
            .limit(round_.limit_rows)
        ).all()

    def fail(session: Transaction, item: Item) -> None:
        timeout_s = session.scalar(select(Job.timeout_s).where(Job.id == item.id))
        if timeout_s is None:
            return
        error = {
            "type": Timeout.code,
            "message": f"The job ran longer than its timeout_s of {timeout_s:g} s. Raise it, or "
            "give the job less to do.",
        }
        jobs.stop(session, item.id, State.FAILED, error)

    round_.handle_all((Item(kind="job", id=id_, job_id=id_) for id_ in ids), fail)


def watch_store(round_: Round) -> None:
    """Note which servers of the vector store are healthy. The collections of one that was away are
    due for a check when it is back: what it has lost, nobody else would find."""
    settings = round_.process.settings
    store = configured_store(settings)
    for url in store.urls if store is not None else ():
        assert store is not None
        problem = store.type_.check(url, settings.connect_timeout_s)
        with round_.process.ledger.begin() as session:
            count = checks.note_server(
                session,
                str(url),
                is_well=problem is None,
                away_s=settings.store_away_s,
                unseen_s=settings.store_unseen_s,
            )
        if count is not None:
            log.warning("the vector store %s was away: %s collections are checked", url, count)


def submit_checks(round_: Round) -> None:
    """Submit the checks that are due, of collections that no job checks or rebuilds."""
    process = round_.process
    with process.ledger.read_single() as session:
        ids = checks.due(session, [CHECK.name, REBUILD.name, EXPORT.name], limit=round_.limit_rows)

    def submit(session: Transaction, item: Item) -> None:
        name = checks.clear_due(session, item.id)
        if name is not None:
            new = NewJob(
                kind=CHECK,
                input=CheckInput(collection=name).model_dump(mode="json"),
                fair_key=INTEGRITY,
                lane=Lane.BULK,
                max_attempts=process.settings.max_attempts,
            )
            submission.submit(session, new)

    round_.handle_all((Item(kind="collection", id=id_) for id_ in ids), submit)


UNSERVED = """
    SELECT s.id, s.job_id, s.route FROM steps s
    WHERE s.state = 'queued' AND s.route <> ''
      AND s.run_after < now() - make_interval(secs => :limit_s)
      AND NOT EXISTS (SELECT FROM workers w WHERE s.route = ANY(w.routes)
          AND w.last_seen_at > now() - make_interval(secs => :limit_s))
      AND s.queue NOT IN (SELECT name FROM queues WHERE paused_at IS NOT NULL)
      AND NOT EXISTS (SELECT FROM sweep_faults f WHERE f.part = :part
          AND f.item = 'step ' || s.id AND f.retry_at > now())
    LIMIT :limit
"""


def fail_unserved(round_: Round) -> None:
    """Fail the jobs whose model no worker has served for `model_missing_fail_s`."""
    limit_s = round_.process.settings.model_missing_fail_s
    values = {"limit_s": limit_s, "part": round_.part, "limit": round_.limit_rows}
    with round_.process.ledger.read_single() as session:
        rows = session.execute(text(UNSERVED), values).all()
    routes, job_ids = {row.id: row.route for row in rows}, {row.id: row.job_id for row in rows}

    def fail(session: Transaction, item: Item) -> None:
        message = (
            f"{lacks_worker(routes[item.id])} The job has waited for one for {limit_s:g} s "
            "(SLUICE_MODEL_MISSING_FAIL_S); retry it when there is one."
        )
        error = {"type": ModelNotServed.code, "message": message}
        jobs.stop(session, job_ids[item.id], State.FAILED, error)

    round_.handle_all((Item(kind="step", id=row.id, job_id=row.job_id) for row in rows), fail)


def let_turns_go(round_: Round) -> None:
    """Let held turns of conversations go where the turn before them was lost."""
    with round_.process.ledger.read_single() as session:
        ids = turns.with_held_turns(session, limit=round_.limit_rows, part=round_.part)
    round_.handle_all(
        (Item(kind="conversation", id=id_) for id_ in ids),
        lambda session, item: turns.let_next_go(session, item.id),
    )


def fire_schedules(round_: Round) -> None:
    """Submit the jobs of schedules that are due."""
    settings = round_.process.settings
    with round_.process.ledger.read_single() as session:
        names = schedules.due(session, limit=round_.limit_rows)
    round_.handle_all(
        (Item(kind="schedule", id=name) for name in names),
        lambda session, item: schedules.fire(session, item.id, settings),
    )


def ring(round_: Round) -> None:
    """Ring where fewer messages wait than steps are runnable. Too many rings do no harm.

    Raises redis' errors: where one list cannot be rung for, the others cannot either.
    """
    ledger = round_.process.ledger
    ledger.announce_held()
    with ledger.read_single() as session:
        runnable = steps.runnable(
            session, worker_heartbeat_s=round_.process.settings.worker_heartbeat_s, up_to=RINGS
        )
    waiting = ledger.bell.lengths(list(runnable))
    for list_, count in runnable.items():
        if not round_.goes_on:
            break
        ledger.bell.ring(list_, count - waiting[list_])
