"""Retention: jobs that ended, uploads that nobody uses and workers that are gone, after their time.

Rows go a few at a time. What lies in the storage is noted as doomed in the transaction that deletes
its row, and is deleted after that, path by path: one that fails is tried again later. Documents
stay until they are erased.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.jobs import jobs, sweeps
from shared.kinds.registry import KINDS
from shared.tables import DoomedPath, File, Job, Worker
from shared.vocabulary import ENDED
from workers.sweep.rounds import Item, Round

log = logging.getLogger(__name__)

BATCH = 100
WORKERS_KEPT = timedelta(days=1)


class Retention:
    """The parts of the sweeper that forget rows."""

    def __init__(self) -> None:
        self._files_after: tuple[datetime, UUID] | None = None
        """Behind which of the old uploads the next round looks; those before it are in use."""

    @property
    def parts(self) -> Mapping[str, Any]:
        return {
            "retention of jobs": forget_jobs,
            "retention of uploads": self.forget_files,
            "retention of workers": forget_workers,
        }

    def forget_files(self, round_: Round) -> None:
        """Forget uploads that no open job needs. Those in use are read once a round."""
        process = round_.process
        kept = timedelta(days=process.settings.retention_days)
        place = tuple_(File.created_at, File.id)
        query = (
            select(File.id, File.created_at)
            .where(
                File.created_at < func.now() - kept,
                ~sweeps.is_left_alone(round_.part, "file", File.id),
            )
            .order_by(place)
            .limit(round_.limit_rows)
        )
        if self._files_after is not None:
            query = query.where(place > tuple_(*self._files_after))
        with process.ledger.read() as session:
            old = session.execute(query).all()
            in_use = _files_in_use(session, [row.id for row in old])
        self._files_after = (old[-1].created_at, old[-1].id) if old else None
        unused = [row.id for row in old if str(row.id) not in in_use]
        _forget_batches(round_, "file", unused, _forget_files)


def forget_jobs(round_: Round) -> None:
    kept = timedelta(days=round_.process.settings.retention_days)
    with round_.process.ledger.read() as session:
        ids = session.scalars(
            select(Job.id)
            .where(
                Job.finished_at < func.now() - kept,
                Job.state.in_(ENDED),
                ~sweeps.is_left_alone(round_.part, "job", Job.id),
            )
            .order_by(Job.finished_at)
            .limit(round_.limit_rows)
        ).all()
    _forget_batches(round_, "job", ids, _forget_jobs)


def forget_workers(round_: Round) -> None:
    with round_.process.ledger.begin() as session:
        session.execute(delete(Worker).where(Worker.last_seen_at < func.now() - WORKERS_KEPT))


def delete_doomed(round_: Round) -> None:
    """Delete from the storage what retention has noted; what cannot be deleted is tried later."""
    process = round_.process
    with process.ledger.read() as session:
        doomed = session.execute(
            select(DoomedPath.path, DoomedPath.is_folder)
            .where(DoomedPath.retry_at <= func.now())
            .order_by(DoomedPath.retry_at)
            .limit(round_.limit_rows)
        ).all()
    for path, is_folder in doomed:
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
            session.execute(delete(DoomedPath).where(DoomedPath.path == path))


def _postpone(round_: Round, path: str) -> None:
    settings = round_.process.settings
    pause = func.least(
        settings.retry_cap_s,
        settings.retry_base_s * func.power(2, func.least(DoomedPath.tries, 30)),
    )
    with round_.process.ledger.begin() as session:
        session.execute(
            update(DoomedPath)
            .where(DoomedPath.path == path)
            .values(
                tries=DoomedPath.tries + 1,
                retry_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause),
            )
        )


def _forget_batches(round_: Round, kind: str, ids: Sequence[UUID], forget: Any) -> None:
    """Forget rows a batch at a time; one by one where a batch fails."""
    for first in range(0, len(ids), BATCH):
        if not round_.goes_on:
            return
        batch = ids[first : first + BATCH]
        try:
            with round_.process.ledger.begin() as session:
                forget(session, batch)
        except Exception as error:
            log.info("%s: a batch goes row by row: %s", round_.part, error)
            items = [Item(kind=kind, id=id_) for id_ in batch]
            round_.each(items, lambda session, item: forget(session, [item.id]))


def _forget_jobs(session: Session, ids: Sequence[UUID]) -> None:
    folders = [jobs.result_folder(id_) for id_ in jobs.forget(session, ids)]
    _doom(session, folders, is_folder=True)


def _forget_files(session: Session, ids: Sequence[UUID]) -> None:
    paths = session.scalars(delete(File).where(File.id.in_(ids)).returning(File.path)).all()
    _doom(session, paths, is_folder=False)


def _doom(session: Session, paths: Sequence[str], *, is_folder: bool) -> None:
    if paths:
        rows = [{"path": path, "is_folder": is_folder} for path in paths]
        session.execute(insert(DoomedPath).on_conflict_do_nothing(), rows)


# Paths of JSON are lax: an input of another shape has no such file, and is no error.
IN_USE = text("""
    SELECT DISTINCT used.id FROM jobs j
    JOIN unnest(CAST(:kinds AS text[]), CAST(:paths AS jsonpath[])) kind (name, path)
        ON kind.name = j.kind
    CROSS JOIN LATERAL (SELECT jsonb_path_query(j.input, kind.path) #>> '{}' AS id) used
    WHERE j.state IN ('queued', 'running') AND used.id = ANY(:ids)
""")


def _files_in_use(session: Session, ids: Sequence[UUID]) -> set[str]:
    if not ids:
        return set()
    paths = {kind.name: kind.file_path for kind in KINDS.values() if kind.file_path is not None}
    values = {"ids": [str(id_) for id_ in ids], "kinds": list(paths), "paths": [*paths.values()]}
    return set(session.scalars(IN_USE, values))
