"""Keeps a worker's row in the database fresh, so that users see who is alive.

A thread of the main process, with a connection of its own; pool processes never touch it.
"""

import logging
import os
import socket
import threading
from collections.abc import Sequence

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.config import Settings
from shared.db import make_engine, make_sessions
from shared.models import Worker

log = logging.getLogger(__name__)


class Presence:
    def __init__(
        self,
        settings: Settings,
        name: str,
        queues: list[str],
        concurrency: int,
        doors: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._row = {
            "name": name,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "queues": queues,
            "doors": list(doors),
            "concurrency": concurrency,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and take the worker off the list."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        sessions = make_sessions(make_engine(self._settings))
        first = True
        while True:
            self._write(sessions, first=first)
            first = False
            if self._ended.wait(self._settings.worker_heartbeat_s):
                break
        try:
            with sessions.begin() as session:
                self._remove(session)
        except SQLAlchemyError as error:
            log.warning("worker not taken off the list: %s", error)

    def _write(self, sessions: sessionmaker[Session], *, first: bool) -> None:
        seen = {"last_seen_at": func.now()}
        row = insert(Worker).values(self._row)
        changes = {**self._row, **seen, "started_at": func.now()} if first else seen
        try:
            with sessions.begin() as session:
                session.execute(row.on_conflict_do_update(index_elements=["name"], set_=changes))
        except SQLAlchemyError as error:
            log.warning("worker not noted as alive: %s", error)

    def _remove(self, session: Session) -> None:
        row = session.get(Worker, self._row["name"])
        if row is not None and row.pid == os.getpid():
            session.delete(row)
