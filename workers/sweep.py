"""The sweeper: takes back expired leases, ends overdue jobs, rings for unrung steps, tidies up.

Beat rings it every `SLUICE_SWEEP_INTERVAL_S`; one sweep runs at a time, wherever it runs.
Whatever was lost with Redis or with a worker is found here, in Postgres.
"""

import logging
from dataclasses import dataclass
from datetime import timedelta

from redis.exceptions import RedisError
from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared import conversations, jobs, steps
from shared.config import Settings
from shared.document_models import File
from shared.errors import ModelNotServed, SluiceError, Timeout
from shared.estimates import lacks_worker
from shared.models import Job, QueueState, Worker
from shared.payloads import Kind
from shared.queue import Queue
from shared.states import OPEN, State
from workers.ingest.collect import collect_forsaken
from workers.process import Process
from workers.runner import Handlers, lost_worker, settle_failure

log = logging.getLogger(__name__)

LOCK = 0x51CE_5EEE  # any fixed number
BATCH = 100
RINGS = 1000
"""Messages that may wait; more than all workers take until the next sweep is of no use."""
TIDY_EVERY_SWEEPS = 60
WORKERS_KEPT = timedelta(days=1)


class Sweeper:
    def __init__(self, process: Process, handlers: Handlers) -> None:
        self._process = process
        self._handlers = handlers
        self._sweeps = 0

    def sweep(self) -> bool:
        """One round; False if another sweeper is at it."""
        with self._process.ledger.read() as session:
            if not session.scalar(select(func.pg_try_advisory_lock(LOCK))):
                return False
            try:
                self._round()
            finally:
                session.execute(select(func.pg_advisory_unlock(LOCK)))
        return True

    def _round(self) -> None:
        settings, ledger = self._process.settings, self._process.ledger
        with ledger.begin() as session:
            _note_sweep(session)
            take_back(session, settings, self._handlers)
            end_overdue(session)
            fail_unserved(session, settings)
            for conversation_id in conversations.with_held_turns(session, limit=BATCH):
                conversations.let_next_go(session, conversation_id)
        self._ring()
        try:
            collect_forsaken(self._process)
        except SluiceError as error:
            log.warning("could not tidy up vectors; tried again in the next sweep: %s", error)
        if self._sweeps % TIDY_EVERY_SWEEPS == 0:
            with ledger.begin() as session:
                forgotten = apply_retention(session, settings)
            for path in forgotten.files:
                self._process.storage.delete(path)
            for folder in forgotten.folders:
                self._process.storage.delete_folder(folder)
        self._sweeps += 1

    def _ring(self) -> None:
        """Ring where fewer messages wait than steps are runnable. Too many rings do no harm."""
        with self._process.ledger.read() as session:
            runnable = steps.runnable(session)
        bell = self._process.ledger.bell
        for queue, count in runnable.items():
            try:
                missing = min(count, RINGS) - bell.waiting(queue)
                if missing > 0:
                    bell.ring(queue, missing)
            except (RedisError, OSError) as error:
                log.warning("could not ring %s: %s", queue, error)


def _note_sweep(session: Session) -> None:
    row = insert(QueueState).values(name=Queue.CONTROL.value, swept_at=func.now())
    changed = {"swept_at": func.now()}
    session.execute(row.on_conflict_do_update(index_elements=["name"], set_=changed))


def take_back(session: Session, settings: Settings, handlers: Handlers) -> None:
    """Hand expired attempts to the retry policy."""
    for claim in steps.expired(session, limit=BATCH):
        log.warning("lease of step %s (%s) has ended", claim.step_id, claim.name)
        settle_failure(session, settings, handlers.get(claim.name), claim, lost_worker(claim))


def end_overdue(session: Session) -> None:
    """Fail the jobs that ran longer than their `timeout_s`."""
    overdue = session.execute(
        select(Job.id, Job.timeout_s)
        .where(Job.state.in_(OPEN), Job.deadline_at < func.now(), Job.ending.is_(None))
        .order_by(Job.id)
        .limit(BATCH)
    ).all()
    for job_id, timeout_s in overdue:
        error = {
            "type": Timeout.__name__,
            "message": f"The job ran longer than its timeout_s of {timeout_s:g} s. Raise it, or "
            "give the job less to do.",
        }
        jobs.stop(session, job_id, State.FAILED, error)


def fail_unserved(session: Session, settings: Settings) -> None:
    """Fail the jobs whose model no worker has served for `model_missing_fail_s`."""
    limit_s = settings.model_missing_fail_s
    rows = session.execute(
        text("""
            SELECT s.job_id, s.door FROM steps s
            WHERE s.state = 'queued' AND s.door <> ''
              AND s.run_after < now() - make_interval(secs => :limit_s)
              AND NOT EXISTS (SELECT FROM workers w WHERE s.door = ANY(w.doors)
                  AND w.last_seen_at > now() - make_interval(secs => :limit_s))
              AND s.queue NOT IN (SELECT name FROM queues WHERE paused_at IS NOT NULL)
            LIMIT :batch
        """),
        {"limit_s": limit_s, "batch": BATCH},
    ).all()
    for job_id, door in rows:
        message = (
            f"{lacks_worker(door)} The job has waited for one for {limit_s:g} s "
            "(SLUICE_MODEL_MISSING_FAIL_S); retry it when there is one."
        )
        error = {"type": ModelNotServed.__name__, "message": message}
        jobs.stop(session, job_id, State.FAILED, error)


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What retention leaves in the storage, to be deleted once it is committed."""

    files: list[str]
    folders: list[str]


def apply_retention(session: Session, settings: Settings) -> Forgotten:
    """Forget jobs that ended, and uploads nobody uses, `retention_days` ago.

    Documents stay until they are erased.
    """
    kept = timedelta(days=settings.retention_days)
    ended = session.execute(
        delete(Job).where(Job.finished_at < func.now() - kept).returning(Job.id, Job.kind)
    ).all()
    session.execute(delete(Worker).where(Worker.last_seen_at < func.now() - WORKERS_KEPT))
    unused = text("""
        NOT EXISTS (SELECT FROM jobs j, jsonb_array_elements(j.input -> 'sources') s
                WHERE j.kind = 'ingest' AND j.state IN ('queued', 'running')
                  AND s ->> 'file_id' = files.id::text)
        AND NOT EXISTS (SELECT FROM jobs j
                WHERE j.kind = 'hf' AND j.state IN ('queued', 'running')
                  AND jsonb_path_exists(j.input -> 'inputs', '$.file_id ? (@ == $id)',
                      jsonb_build_object('id', files.id::text)))
    """)
    unused_files = session.scalars(
        delete(File).where(File.created_at < func.now() - kept, unused).returning(File.path)
    )
    return Forgotten(
        files=list(unused_files),
        folders=[jobs.result_folder(row.id) for row in ended if row.kind == Kind.HF],
    )
