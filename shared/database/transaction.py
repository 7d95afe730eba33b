"""Transactions of the job ledger: commit first, then ring and publish.

Functions that change what others wait for take a `Transaction` and note on it what is to be
announced; `Ledger.begin()` commits and only then announces. A ring that fails is logged: the step
is committed, and the sweeper rings for it.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.config import ConnectionSettings, Settings
from shared.database.engine import make_engine
from shared.errors import SluiceError
from shared.redis.bell import Bell, make_celery, make_redis, route_in
from shared.redis.events import Event, Events, EventType

log = logging.getLogger(__name__)

# Remembers that a server does not answer, so that not every caller waits to find that out.


class Outage:
    """After a failure, one caller in `pause_s` tries again; the others are told not to."""

    def __init__(self, pause_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._lock = Lock()
        self._retry_at: float | None = None

    def passes(self) -> bool:
        """Whether the caller may try; one that may reports back with `over` or `begins`."""
        with self._lock:
            if self._retry_at is None:
                return True
            now = self._clock()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._pause_s
            return True

    def begins(self) -> None:
        with self._lock:
            self._retry_at = self._clock() + self._pause_s

    def over(self) -> None:
        self._retry_at = None


HELD_LIMIT = 10_000
"""Transactions whose announcements may wait; Postgres knows what older ones had to say."""
ALIVE_FACTOR = 3
"""A worker counts as living for so many of its heartbeats."""
HEARTBEAT_S = 5.0
"""Unless a setting says otherwise (`worker_heartbeat_s`)."""


@dataclass
class Announcements:
    """What is to be rung and published once a transaction has been committed."""

    rings: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)


class Transaction(Session):
    """A session that knows what to do once its transaction has been committed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.announcements = Announcements()
        self._callbacks: list[Callable[[], None]] = []

    def ring(self, list_: str, times: int = 1) -> None:
        """Ring for steps that this transaction makes runnable; `list_` as `list_of` has it."""
        self.announcements.rings[list_] += times

    def publish(self, job_id: UUID, type_: EventType, data: dict[str, Any]) -> None:
        """Let those who follow the job know of what this transaction writes."""
        self.announcements.events.append(Event(job_id=job_id, type=type_, data=data))

    def retract(self, job_id: UUID, type_: EventType) -> None:
        """Publish no such event of the job: what it tells of was not written."""
        self.announcements.events = [
            event
            for event in self.announcements.events
            if event.job_id != job_id or event.type is not type_
        ]

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call it once this is committed. Its errors are logged: what is written stays written."""
        self._callbacks.append(callback)

    def run_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except (SluiceError, SQLAlchemyError) as error:
                # What stays behind is invisible to readers, and the sweeper looks for it.
                log.warning("could not tidy up after a transaction: %s", error)


def make_sessions(engine: Engine) -> sessionmaker[Transaction]:
    return sessionmaker(engine, class_=Transaction, expire_on_commit=False)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The database's engines; `planned` plans each statement once (`make_engine`)."""

    usual: Engine
    planned: Engine

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.usual.dispose()
        self.planned.dispose()


def make_engines(settings: ConnectionSettings) -> Engines:
    return Engines(usual=make_engine(settings), planned=make_engine(settings, plans_once=True))


class Ledger:
    """The database's sessions together with the doorbell and the event streams."""

    def __init__(
        self, engines: Engines, bell: Bell, events: Events, *, worker_heartbeat_s: float
    ) -> None:
        self._engines = engines
        self._sessions = make_sessions(engines.usual)
        self._worker_heartbeat_s = worker_heartbeat_s
        self._served_until: dict[str, float] = {}
        self._singles = make_sessions(self.engine.execution_options(isolation_level="AUTOCOMMIT"))
        self._planned = make_sessions(
            engines.planned.execution_options(isolation_level="AUTOCOMMIT")
        )
        self.bell = bell
        self.events = events
        self._outage = Outage()
        self._held: deque[Announcements] | None = None

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """One transaction; its announcements go out after the commit, or not at all."""
        with self._sessions.begin() as transaction:
            yield transaction
        self.complete(transaction)

    @contextmanager
    def begin_single(self) -> Iterator[Transaction]:
        """As `begin`, for what is written by one statement: that commits itself.

        It saves the trips to the server that begin and commit.
        """
        with self._singles() as transaction:
            yield transaction
        self.complete(transaction)

    @contextmanager
    def begin_planned(self) -> Iterator[Transaction]:
        """As `begin_single`, on connections of their own that plan each statement once.

        For statements that take longer to plan than to run (`make_engine` says which may be used).
        """
        with self._planned() as transaction:
            yield transaction
        self.complete(transaction)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading alone; nothing is announced, nothing is kept."""
        with self._sessions() as session:
            yield session

    @contextmanager
    def read_single(self) -> Iterator[Session]:
        """As `read`, for one statement, or several that need not see the same moment: it saves the
        trips that begin and end a transaction."""
        with self._singles() as session:
            yield session

    def flush(self) -> None:
        """Returns when all that was committed before is on disk, also what was committed without
        waiting for that. The transaction has to write something, or it waits for nothing."""
        with self.begin_single() as transaction:
            transaction.execute(FLUSH)

    def complete(self, transaction: Transaction) -> None:
        """What follows the commit: rings, events, callbacks. `begin` has called it, unless the
        commit went unanswered."""
        self._announce(transaction.announcements)
        transaction.announcements = Announcements()
        transaction.run_callbacks()

    @property
    def engine(self) -> Engine:
        return self._engines.usual

    @property
    def planned_engine(self) -> Engine:
        return self._engines.planned

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self._engines.close()
        self.bell.close()
        self.events.close()

    def hold_announcements(self) -> None:
        """From now on what is to be announced waits for `announce_held`, which another thread
        calls: for callers that must not wait for Redis."""
        self._held = deque(maxlen=HELD_LIMIT)

    def announce_held(self) -> None:
        held = self._held
        while held:
            self._send(held.popleft())

    def _announce(self, announcements: Announcements) -> None:
        if not (announcements.rings or announcements.events):
            return
        if self._held is None:
            self._send(announcements)
        else:
            self._held.append(announcements)

    def _send(self, announcements: Announcements) -> None:
        if not self._outage.passes():
            log.debug("Redis does not answer; the sweeper will ring")
            return
        try:
            for list_, times in announcements.rings.items():
                if self._is_served(route_in(list_)):
                    self.bell.ring(list_, times)
        except (RedisError, OSError) as error:
            log.warning("could not ring; the sweeper will: %s", error)
            self._outage.begins()
            return
        if self.events.publish(announcements.events):
            self._outage.over()
        else:
            self._outage.begins()

    def _is_served(self, route: str) -> bool:
        """Whether a living worker takes the route: one that nobody takes from gets no list.

        The sweeper rings once there is one.
        """
        if not route or time.monotonic() < self._served_until.get(route, 0.0):
            return True
        try:
            with self.read() as session:
                served = session.scalar(
                    SERVED, {"route": route, "alive_s": ALIVE_FACTOR * self._worker_heartbeat_s}
                )
        except SQLAlchemyError as error:
            log.warning("could not look who serves %s: %s", route, error)
            return True
        if served:  # so that few submits ask
            self._served_until[route] = time.monotonic() + self._worker_heartbeat_s
        return bool(served)


FLUSH = text("SELECT pg_logical_emit_message(true, 'sluice', 'flush')")
SERVED = text("""
    SELECT EXISTS (SELECT FROM workers WHERE routes @> ARRAY[CAST(:route AS text)]
        AND last_seen_at > now() - make_interval(secs => :alive_s))
""")


def make_ledger(settings: Settings, engines: Engines | None = None) -> Ledger:
    """Build all connections; nothing connects before its first use."""
    redis = make_redis(settings)
    return Ledger(
        engines or make_engines(settings),
        Bell(
            make_celery(settings),
            redis,
            limit_messages=settings.rings_limit_messages,
            keep_s=settings.rings_keep_s,
        ),
        Events(
            redis,
            limit_entries=settings.events_limit_entries,
            keep_s=settings.events_keep_s,
            keep_after_end_s=settings.events_keep_after_end_s,
        ),
        worker_heartbeat_s=settings.worker_heartbeat_s,
    )
